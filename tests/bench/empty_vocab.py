#!/usr/bin/env python3
"""Write a GGUF that says its model has no tokenizer: token ids are all that a benchmark needs."""

import sys

from gguf import GGUFWriter

writer = GGUFWriter(sys.argv[1], "llama")
writer.add_string("tokenizer.ggml.model", "no_vocab")
writer.write_header_to_file()
writer.write_kv_data_to_file()
writer.close()
