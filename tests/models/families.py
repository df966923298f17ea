#!/usr/bin/env python3
"""Write models in the true shapes of the families that promptd runs, two layers deep and with random weights, and what a
plain ONNX Runtime loop in Python answers with them.

Each is written as its exporter would: onnxruntime-genai's graphs (int4, GroupQueryAttention) for the LLaMA-like families,
Optimum's (no contrib operators but for int4 weights, past grown step by step) for the OPT architecture. For each one, a
command may be run; then the model is removed, as the large ones take gigabytes.

    families.py --into target/families [--only qwen3-8b,opt-1.3b] [--keep] [-- cargo test --test it model_families]
"""

import argparse
import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto as T
from onnx import helper, numpy_helper

MS = "com.microsoft"
LAYERS = 2

# hidden, intermediate, query heads, key/value heads, vocabulary, context; what differs from LLaMA.
SHAPES = {
    "llama-7b": dict(type="llama", shape=(4096, 11008, 32, 32, 32000, 2048)),
    "llama-13b": dict(type="llama", shape=(5120, 13824, 40, 40, 32000, 2048)),
    "llama-33b": dict(type="llama", shape=(6656, 17920, 52, 52, 32000, 2048)),
    "llama-65b": dict(type="llama", shape=(8192, 22016, 64, 64, 32000, 2048)),
    "llama2-7b": dict(type="llama", shape=(4096, 11008, 32, 32, 32000, 4096)),
    "llama2-13b": dict(type="llama", shape=(5120, 13824, 40, 40, 32000, 4096)),
    "llama2-70b": dict(type="llama", shape=(8192, 28672, 64, 8, 32000, 4096)),
    "llama3.2-1b": dict(type="llama", shape=(2048, 8192, 32, 8, 128256, 8192), theta=500000.0),
    # What exporters may do otherwise, on the smallest of the shapes: keys and values in 8 and in 4 bits, weights with zero points.
    "llama3.2-1b-kv8": dict(type="llama", shape=(2048, 8192, 32, 8, 128256, 8192), theta=500000.0, kv_bits=8),
    "llama3.2-1b-kv4": dict(type="llama", shape=(2048, 8192, 32, 8, 128256, 8192), theta=500000.0, kv_bits=4),
    "llama3.2-1b-zero-points": dict(type="llama", shape=(2048, 8192, 32, 8, 128256, 8192), theta=500000.0, zero_points=True),
    "llama3.1-8b": dict(type="llama", shape=(4096, 14336, 32, 8, 128256, 8192), theta=500000.0),
    "mistral-7b": dict(type="mistral", shape=(4096, 14336, 32, 8, 32768, 4096), window=4096),
    "qwen2.5-7b": dict(type="qwen2", shape=(3584, 18944, 28, 4, 152064, 4096), theta=1e6, bias=True),
    "qwen3-8b": dict(type="qwen3", shape=(4096, 12288, 32, 8, 151936, 4096), theta=1e6, head_norm=True),
    "phi3-mini": dict(type="phi3", shape=(3072, 8192, 32, 32, 32064, 4096), packed=True, fused=True, window=2047),
    "smollm2-1.7b": dict(type="llama", shape=(2048, 8192, 32, 32, 49152, 8192), theta=130000.0),
    "gemma-2b": dict(type="gemma", shape=(2048, 16384, 8, 1, 256000, 4096), head=256, gelu=True, scaled=True),
    "opt-1.3b": dict(type="opt", shape=(2048, 8192, 32, 32, 50272, 2048), bias=True),
    "galactica-1.3b": dict(type="opt", shape=(2048, 8192, 32, 32, 50000, 2048), gelu=True, positions=True),
    "blenderbot3-30b": dict(type="opt", shape=(7168, 28672, 56, 56, 50272, 2048), bias=True, int4=True),
}


class Graph:
    """A graph whose weights go to a file of their own as they are made."""

    def __init__(self, folder, seed, zero_points=False):
        self.zero_points = zero_points
        self.folder, self.rng = folder, np.random.default_rng(seed)
        self.data, self.at = open(folder / "model.onnx.data", "wb"), 0
        self.nodes, self.weights, self.constants = [], [], {}
        self.inputs, self.outputs, self.count = [], [], 0

    def add(self, operator, inputs, outputs=1, domain="", **attributes):
        self.count += 1
        names = [f"{operator}_{self.count}_{i}" for i in range(outputs)] if isinstance(outputs, int) else outputs
        self.nodes.append(helper.make_node(operator, inputs, names, f"{operator}_{self.count}", domain=domain, **attributes))
        return names[0] if len(names) == 1 else names

    def weight(self, name, array):
        pad = -self.at % 4096
        self.data.write(b"\0" * pad)
        self.at += pad
        tensor = T_of(name, array)
        for key, value in (("location", "model.onnx.data"), ("offset", self.at), ("length", array.nbytes)):
            tensor.external_data.add(key=key, value=str(value))
        self.data.write(array.tobytes())
        self.at += array.nbytes
        self.weights.append(tensor)
        return name

    def const(self, value, kind=np.int64):
        array = np.array(value, dtype=kind)
        name = f"const_{np.dtype(kind).name}_{'x'.join(map(str, array.shape))}_{'_'.join(map(str, array.flatten()))}"
        self.constants[name] = numpy_helper.from_array(array, name)
        return name

    def int4(self, name, rows, columns, block, std):
        """Random weights of four bits about their zero point, which is 8."""
        codes = np.arange(256)
        codes = (np.where(codes % 16, codes % 16, 8) | np.where(codes // 16, codes // 16, 8) << 4).astype(np.uint8)
        blocks = columns // block
        packed = codes[self.rng.integers(0, 256, rows * columns // 2, dtype=np.uint8)]
        scales = self.rng.uniform(0.8, 1.2, (rows, blocks)).astype(np.float32) * np.float32(std / math.sqrt(21.25))
        return packed.reshape(rows, blocks, block // 2), scales

    def linear(self, name, x, columns, rows, block=32, accuracy=4, output=None):
        packed, scales = self.int4(name, rows, columns, block, columns**-0.5)
        inputs = [x, self.weight(f"{name}.q", packed), self.weight(f"{name}.s", scales)]
        if self.zero_points:  # two of 6 to 10 in a byte, a row's last one padded
            pairs = self.rng.integers(6, 11, (2, rows, (columns // block + 1) // 2), dtype=np.uint8)
            inputs.append(self.weight(f"{name}.z", pairs[0] | pairs[1] << 4))
        return self.add("MatMulNBits", inputs, [output or f"{name}.out"], MS, K=columns, N=rows, bits=4,
                        block_size=block, accuracy_level=accuracy)

    def vector(self, name, size, mean, spread):
        return self.weight(name, (mean + spread * self.rng.standard_normal(size)).astype(np.float32))

    def save(self, batches=True):
        self.data.close()
        graph = helper.make_graph(self.nodes, "main", self.inputs, self.outputs, [*self.constants.values(), *self.weights])
        model = helper.make_model(graph, ir_version=10, producer_name="families.py",
                                  opset_imports=[helper.make_opsetid("", 21), helper.make_opsetid(MS, 1)])
        onnx.save(model, self.folder / "model.onnx")


def T_of(name, array):
    kinds = {"float32": T.FLOAT, "uint8": T.UINT8, "int64": T.INT64}
    tensor = onnx.TensorProto(name=name, data_type=kinds[array.dtype.name], dims=array.shape)
    tensor.data_location = onnx.TensorProto.EXTERNAL
    return tensor


def ports(g, heads, head, vocab, with_positions=False, kv_bits=32):
    info = helper.make_tensor_value_info
    g.inputs += [info("input_ids", T.INT64, ["batch", "sequence"]), info("attention_mask", T.INT64, ["batch", "total"])]
    if with_positions:
        g.inputs.append(info("position_ids", T.INT64, ["batch", "sequence"]))
    g.outputs.append(info("logits", T.FLOAT, ["batch", "sequence", vocab]))
    kind, width = {32: (T.FLOAT, head), 8: (T.INT8, head), 4: (T.UINT8, head // 2)}[kv_bits]
    for layer in range(LAYERS):
        for part in ("key", "value"):
            g.inputs.append(info(f"past_key_values.{layer}.{part}", kind, ["batch", heads, "past", width]))
            g.outputs.append(info(f"present.{layer}.{part}", kind, ["batch", heads, "total", width]))


def write_llama_like(folder, o):
    """As onnxruntime-genai's builder writes int4 models for the CPU."""
    hidden, inter, heads, kv_heads, vocab, context = o["shape"]
    head = o.get("head", 128 if o.get("head_norm") else hidden // heads)
    g = Graph(folder, 7, o.get("zero_points"))
    bits = o.get("kv_bits", 32)
    ports(g, kv_heads, head, vocab, kv_bits=bits)
    # One scale for all: four standard deviations on both sides. Position ids, bias and sinks in front of it are left out.
    scale = g.const([4 / (2 ** (bits - 1) - 1)], np.float32)
    scales_of_cache = [] if bits == 32 else ["", "", "", scale, scale]
    quantized = {} if bits == 32 else dict(k_quant_type="PER_TENSOR", v_quant_type="PER_TENSOR", kv_cache_bit_width=bits)
    total = g.add("ReduceSum", ["attention_mask", g.const([1])], keepdims=0)
    seqlens = g.add("Cast", [g.add("Sub", [total, g.const([1])])], to=T.INT32)
    length = g.add("Cast", [g.add("Gather", [g.add("Shape", ["attention_mask"]), g.const(1)], axis=0)], to=T.INT32)
    packed, scales = g.int4("embed", vocab, hidden, 32, 1.0)
    x = g.add("GatherBlockQuantized",
              [g.weight("embed.q", packed.reshape(vocab, hidden // 2)), "input_ids", g.weight("embed.s", scales)],
              1, MS, bits=4, block_size=32, gather_axis=0, quantize_axis=1)
    if o.get("scaled"):  # Gemma
        x = g.add("Mul", [x, g.const(math.sqrt(hidden), np.float32)])
    angles = np.outer(np.arange(context), o.get("theta", 10000.0) ** -(np.arange(head // 2) / (head // 2)))
    g.weight("cos_cache", np.cos(angles).astype(np.float32))
    g.weight("sin_cache", np.sin(angles).astype(np.float32))
    delta = None

    def norm(name, x, delta, last=False):
        scale = g.vector(name, hidden, 1.0, 0.1)
        if delta is None:
            return g.add("SimplifiedLayerNormalization", [x, scale], axis=-1, epsilon=1e-5, stash_type=1), x
        outputs = [f"{name}.out"] if last else [f"{name}.out", "", "", f"{name}.sum"]
        g.add("SkipSimplifiedLayerNormalization", [x, delta, scale], outputs, MS, epsilon=1e-5)
        return f"{name}.out", f"{name}.sum"

    def head_norm(name, x, count):
        flat = g.add("Reshape", [x, g.const([0, -1, count, head])])
        scaled = g.add("SimplifiedLayerNormalization", [flat, g.vector(name, head, 1.0, 0.1)], axis=-1, epsilon=1e-6, stash_type=1)
        return g.add("Reshape", [scaled, g.const([0, -1, count * head])])

    for layer in range(LAYERS):
        at = f"layers.{layer}"
        normed, x = norm(f"{at}.norm1", x, delta)
        if o.get("packed"):
            q, k, v = g.linear(f"{at}.qkv", normed, hidden, (heads + 2 * kv_heads) * head), "", ""
        else:
            q, k, v = (g.linear(f"{at}.{name}", normed, hidden, count * head)
                       for name, count in (("q", heads), ("k", kv_heads), ("v", kv_heads)))
        if o.get("bias"):
            q, k, v = (g.add("Add", [y, g.vector(f"{at}.{name}.bias", count * head, 0.0, 0.3)])
                       for y, name, count in ((q, "q", heads), (k, "k", kv_heads), (v, "v", kv_heads)))
        if o.get("head_norm"):
            q, k = head_norm(f"{at}.q.norm", q, heads), head_norm(f"{at}.k.norm", k, kv_heads)
        attended = g.add("GroupQueryAttention",
                         [q, k, v, f"past_key_values.{layer}.key", f"past_key_values.{layer}.value", seqlens, length,
                          "cos_cache", "sin_cache", *scales_of_cache],
                         [f"{at}.attended", f"present.{layer}.key", f"present.{layer}.value"], MS, num_heads=heads,
                         kv_num_heads=kv_heads, scale=head**-0.5, local_window_size=o.get("window", -1), do_rotary=1,
                         rotary_interleaved=0, **quantized)[0]
        delta = g.linear(f"{at}.o", attended, heads * head, hidden)
        normed, x = norm(f"{at}.norm2", x, delta)
        if o.get("fused"):
            gate, up = g.add("Split", [g.linear(f"{at}.gate_up", normed, hidden, 2 * inter)], 2, axis=-1, num_outputs=2)
        else:
            gate, up = g.linear(f"{at}.gate", normed, hidden, inter), g.linear(f"{at}.up", normed, hidden, inter)
        if o.get("gelu"):
            active = g.add("FastGelu", [gate], 1, MS)
        else:
            active = g.add("Mul", [gate, g.add("Sigmoid", [gate])])
        delta = g.linear(f"{at}.down", g.add("Mul", [active, up]), inter, hidden)
    normed, _ = norm("norm", x, delta, last=True)
    g.linear("lm_head", normed, hidden, vocab, output="logits")
    g.save()
    names = {"input_ids": "input_ids", "attention_mask": "attention_mask",
             "past_key_names": "past_key_values.%d.key", "past_value_names": "past_key_values.%d.value"}
    outputs = {"logits": "logits", "present_key_names": "present.%d.key", "present_value_names": "present.%d.value"}
    config = {
        "model": {"bos_token_id": 1, "context_length": context, "eos_token_id": 2, "pad_token_id": 0, "type": o["type"],
                  "vocab_size": vocab,
                  "decoder": {"session_options": {"provider_options": []}, "filename": "model.onnx", "head_size": head,
                              "hidden_size": hidden, "inputs": names, "outputs": outputs, "num_attention_heads": heads,
                              "num_hidden_layers": LAYERS, "num_key_value_heads": kv_heads}},
        "search": {"max_length": context, "past_present_share_buffer": True},
    }
    (folder / "genai_config.json").write_text(json.dumps(config))


def write_opt(folder, o):
    """As Optimum exports OPT: learned positions two behind their place, plain operators, a past that grows."""
    hidden, inter, heads, _, vocab, context = o["shape"]
    head = hidden // heads
    g = Graph(folder, 11)
    ports(g, heads, head, vocab, o.get("positions"))

    def linear(name, x, columns, rows, output=None):
        if o.get("int4"):
            y = g.linear(name, x, columns, rows, output=output)
        else:
            weight = (g.rng.standard_normal((columns, rows), dtype=np.float32) * np.float32(columns**-0.5))
            y = g.add("MatMul", [x, g.weight(f"{name}.w", weight)], [output or f"{name}.out"])
        if o.get("bias") and output is None:
            y = g.add("Add", [y, g.vector(f"{name}.b", rows, 0.0, 0.1)])
        return y

    def layer_norm(name, x):
        return g.add("LayerNormalization", [x, g.vector(f"{name}.w", hidden, 1.0, 0.1), g.vector(f"{name}.b", hidden, 0.0, 0.1)],
                     axis=-1, epsilon=1e-5)

    shape = g.add("Shape", ["input_ids"])
    count = g.add("Gather", [shape, g.const([1])], axis=0)
    total = g.add("Gather", [g.add("Shape", ["attention_mask"]), g.const([1])], axis=0)
    past = g.add("Sub", [total, count])
    if o.get("positions"):
        positions = "position_ids"
    else:
        # The ones of the mask so far, less one; those of this step.
        summed = g.add("CumSum", ["attention_mask", g.const(1)])
        every = g.add("Sub", [g.add("Mul", [summed, "attention_mask"]), g.const(1)])
        positions = g.add("Slice", [every, past, total, g.const([1])])
    places = g.weight("positions", g.rng.standard_normal((context + 2, hidden), dtype=np.float32))
    embed = g.weight("embed", g.rng.standard_normal((vocab, hidden), dtype=np.float32))
    x = g.add("Add", [g.add("Gather", [embed, "input_ids"]), g.add("Gather", [places, g.add("Add", [positions, g.const(2)])])])
    # A token sees those before it that the mask lets it see.
    scalar = lambda name: g.add("Squeeze", [name])
    rows = g.add("Range", [scalar(past), scalar(total), g.const(1)])
    columns = g.add("Range", [g.const(0), scalar(total), g.const(1)])
    seen = g.add("LessOrEqual", [g.add("Unsqueeze", [columns, g.const([0])]), g.add("Unsqueeze", [rows, g.const([1])])])
    allowed = g.add("Cast", [g.add("Unsqueeze", ["attention_mask", g.const([1, 2])])], to=T.BOOL)
    allowed = g.add("And", [allowed, g.add("Unsqueeze", [seen, g.const([0, 1])])])
    bias = g.add("Where", [allowed, g.const(0.0, np.float32), g.const(-1e9, np.float32)])
    for layer in range(LAYERS):
        at = f"layers.{layer}"
        normed = layer_norm(f"{at}.norm1", x)
        split = lambda y: g.add("Transpose", [g.add("Reshape", [y, g.const([0, 0, heads, head])])], perm=[0, 2, 1, 3])
        query, key, value = (split(linear(f"{at}.{name}", normed, hidden, hidden)) for name in "qkv")
        key = g.add("Concat", [f"past_key_values.{layer}.key", key], [f"present.{layer}.key"], axis=2)
        value = g.add("Concat", [f"past_key_values.{layer}.value", value], [f"present.{layer}.value"], axis=2)
        query = g.add("Mul", [query, g.const(head**-0.5, np.float32)])
        scores = g.add("Add", [g.add("MatMul", [query, g.add("Transpose", [key], perm=[0, 1, 3, 2])]), bias])
        mixed = g.add("MatMul", [g.add("Softmax", [scores], axis=-1), value])
        mixed = g.add("Reshape", [g.add("Transpose", [mixed], perm=[0, 2, 1, 3]), g.const([0, 0, hidden])])
        x = g.add("Add", [x, linear(f"{at}.o", mixed, hidden, hidden)])
        inner = linear(f"{at}.fc1", layer_norm(f"{at}.norm2", x), hidden, inter)
        if o.get("gelu"):  # Galactica
            half = g.add("Erf", [g.add("Mul", [inner, g.const(2**-0.5, np.float32)])])
            inner = g.add("Mul", [g.add("Mul", [inner, g.const(0.5, np.float32)]), g.add("Add", [half, g.const(1.0, np.float32)])])
        else:
            inner = g.add("Relu", [inner])
        x = g.add("Add", [x, linear(f"{at}.fc2", inner, inter, hidden)])
    linear("lm_head", layer_norm("norm", x), hidden, vocab, output="logits")
    g.save()
    config = {"model_type": "opt", "hidden_size": hidden, "num_attention_heads": heads, "num_hidden_layers": LAYERS,
              "max_position_embeddings": context, "vocab_size": vocab, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    (folder / "config.json").write_text(json.dumps(config))


def write_tokenizer(folder):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: i for i, token in enumerate(["<unk>", "<s>", "</s>", *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token="<unk>"))
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<s>", "eos_token": "</s>"}))


class Reference:
    """Greedy ids by onnxruntime's Python interface, one prompt at a time."""

    def __init__(self, folder, threads):
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        self.session = ort.InferenceSession(str(folder / "model.onnx"), options, providers=["CPUExecutionProvider"])
        self.inputs = {port.name: port.shape for port in self.session.get_inputs()}
        kinds = {"tensor(float)": np.float32, "tensor(int8)": np.int8, "tensor(uint8)": np.uint8}
        self.kinds = {port.name: kinds.get(port.type) for port in self.session.get_inputs()}

    def answer(self, prompt, count):
        """The past is what the last step gave: grown by the graph, with GroupQueryAttention as well."""
        past = {name: np.zeros((1, shape[1], 0, shape[3]), self.kinds[name])
                for name, shape in self.inputs.items() if name.startswith("past_")}
        ids, new, length = [], list(prompt), 0
        for _ in range(count):
            length += len(new)
            feed = {"input_ids": np.array([new], np.int64), "attention_mask": np.ones((1, length), np.int64), **past}
            if "position_ids" in self.inputs:
                feed["position_ids"] = np.arange(length - len(new), length, dtype=np.int64)[None]
            logits, *present = self.session.run(None, feed)
            assert np.isfinite(logits[0, -1]).all()
            past = dict(zip(past, present))
            new = [int(logits[0, -1].argmax())]
            if new[0] == 2:
                break
            ids += new
        return ids


def write(name, folder, threads):
    o = SHAPES[name]
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (write_opt if o["type"] == "opt" else write_llama_like)(folder, o)
    write_tokenizer(folder)
    reference, rng, expected = Reference(folder, threads), np.random.default_rng(3), []
    for length in (5, 33, 100):
        prompt = [1, *rng.integers(3, o["shape"][4], length - 1).tolist()]
        expected.append({"prompt": prompt, "ids": reference.answer(prompt, 16)})
    # Answers of one token over and over would be right with any past.
    assert all(len(set(line["ids"])) * 2 > len(line["ids"]) for line in expected), f"{name}: {expected}"
    (folder / "expected.json").write_text(json.dumps(expected))
    size = sum(path.stat().st_size for path in folder.iterdir())
    print(f"{name}: {size / 1e9:.2f} GB written", flush=True)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--into", type=Path, required=True)
    p.add_argument("--only", default=",".join(SHAPES))
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--keep", action="store_true")
    p.add_argument("command", nargs="*", help="run for each model, with PROMPTD_TEST_FAMILIES naming its folder")
    a = p.parse_args()
    failed = []
    for name in a.only.split(","):
        folder = a.into / name
        write(name, folder, a.threads)
        if a.command:
            done = subprocess.run(a.command, env={**os.environ, "PROMPTD_TEST_FAMILIES": str(folder.resolve())})
            failed += [name] if done.returncode else []
        if not a.keep:
            shutil.rmtree(folder)
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
