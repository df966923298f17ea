#!/usr/bin/env python3
"""Writes the demo model with its hidden states as one more output into a folder, as onnxruntime-genai's builder does with
`include_hidden_states`: a model that gives texts and vectors.

    hidden_model.py FROM INTO

Standard library only."""
import json
import pathlib
import shutil
import sys

# What goes into the model's last layer, and how many numbers it has.
HIDDEN, WIDTH = "/norm/output", 128


def varint(number):
    low, number = number & 127, number >> 7
    return bytes([low | 128]) + varint(number) if number else bytes([low])


def field(number, value):
    """A field of protobuf that says how long it is."""
    return varint(number << 3 | 2) + varint(len(value)) + value


def output():
    """`ValueInfoProto` of the hidden states: `[batch, tokens, WIDTH]` of float32."""
    names = [field(1, field(2, name)) for name in (b"batch_size", b"sequence_length")]
    shape = b"".join([*names, field(1, b"\x08" + varint(WIDTH))])
    return field(1, HIDDEN.encode()) + field(2, field(1, b"\x08\x01" + field(2, shape)))


def main():
    source, into = map(pathlib.Path, sys.argv[1:])
    into.mkdir(parents=True, exist_ok=True)
    for name in ("model.onnx.data", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(source / name, into / name)
    # Where a message stands twice in protobuf, both are put together: ModelProto.graph is 7, GraphProto.output 12.
    (into / "model.onnx").write_bytes((source / "model.onnx").read_bytes() + field(7, field(12, output())))
    config = json.loads((source / "genai_config.json").read_text())
    config["model"]["decoder"]["outputs"]["hidden_states"] = HIDDEN
    (into / "genai_config.json").write_text(json.dumps(config))


main()
