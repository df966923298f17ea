"""Plays an exported folder with ONNX Runtime in Python: greedy answers through the shared key/value buffer."""
import json
from pathlib import Path

import numpy as np
import onnxruntime as ort


class Runtime:
    def __init__(self, folder, threads=1):
        folder = Path(folder)
        self.config = json.loads((folder / "genai_config.json").read_text())["model"]
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        self.session = ort.InferenceSession(str(folder / "model.onnx"), options, providers=["CPUExecutionProvider"])
        self.end, self.context = self.config["eos_token_id"], self.config["context_length"]

    def greedy(self, ids, limit=64):
        """-> generated ids without the end token, and why it stopped."""
        d = self.config["decoder"]
        shape = (1, d["num_key_value_heads"], self.context, d["head_size"])
        names = [(i, k) for i in range(d["num_hidden_layers"]) for k in ("key", "value")]
        buffers = {n: ort.OrtValue.ortvalue_from_numpy(np.zeros(shape, np.float32)) for n in names}
        out, new, total = [], list(ids), len(ids)
        limit = min(limit, self.context - len(ids))
        while len(out) < limit:
            binding = self.session.io_binding()
            binding.bind_cpu_input("input_ids", np.array([new], np.int64))
            binding.bind_cpu_input("attention_mask", np.ones((1, total), np.int64))
            for i, k in names:  # the same memory as input and output, so that nothing is copied
                binding.bind_ortvalue_input(f"past_key_values.{i}.{k}", buffers[i, k])
                binding.bind_ortvalue_output(f"present.{i}.{k}", buffers[i, k])
            binding.bind_output("logits", "cpu")
            self.session.run_with_iobinding(binding)
            best = int(binding.copy_outputs_to_cpu()[-1][0, -1].argmax())
            if best == self.end:
                return out, "stop"
            out.append(best)
            new, total = [best], total + 1
        return out, "length"
