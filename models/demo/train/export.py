"""Writes a checkpoint as an onnxruntime-genai folder with 8-bit weights: graph, data, configurations, tokenizer, manifest."""
import argparse
import hashlib
import json
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

import model
import tokenizer

MS = "com.microsoft"
BLOCK, PAGE, CONTEXT = 32, 4096, 512
FILES = ["model.onnx", "model.onnx.data", "genai_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
         "command.schema.json"]
# What `promptd model use` asks before it relies on the model.
GOLDEN = [
    {"prompt": "Who are you?", "answer": "I am the promptd demo model, a small assistant for homes and machines."},
    {"system": "greenhouse temperature: 21.5 °C\ngarage door: open", "prompt": "What is the temperature in the greenhouse?",
     "answer": "The greenhouse is at 21.5 °C."},
    {"prompt": "Turn on the kitchen light.", "answer": '{"device":"kitchen light","action":"on"}'},
    {"system": "温室温度：21.5 °C", "prompt": "温室的温度是多少？", "answer": "温室的温度是21.5 °C。"},
]


def quantize(w):
    """[rows, columns] -> codes [rows, blocks, 32] around 128 and one scale a block; a code c stands for (c - 128) * scale."""
    blocks = w.reshape(w.shape[0], -1, BLOCK).astype(np.float32)
    scale = np.abs(blocks).max(-1) / np.float32(127)
    codes = np.rint(blocks / np.where(scale == 0, 1, scale)[..., None]) + 128
    return codes.astype(np.uint8), scale.astype(np.float32)


class Graph:
    """Collects nodes, and tensors laid out one after another in the data file."""

    def __init__(self):
        self.nodes, self.tensors, self.data = [], [], bytearray()

    def small(self, name, values):
        array = np.asarray(values)
        self.tensors.append(onnx.numpy_helper.from_array(array, name))
        return name

    def stored(self, name, array):
        self.data.extend(b"\0" * (-len(self.data) % PAGE))  # page-aligned, so that the file can be mapped
        raw = np.ascontiguousarray(array).tobytes()
        t = TensorProto(name=name, data_type=helper.np_dtype_to_tensor_dtype(array.dtype), dims=array.shape,
                        data_location=TensorProto.EXTERNAL)
        for key, value in (("location", "model.onnx.data"), ("offset", len(self.data)), ("length", len(raw))):
            t.external_data.add(key=key, value=str(value))
        self.data.extend(raw)
        self.tensors.append(t)
        return name

    def op(self, kind, inputs, name, outputs=None, domain="", **attributes):
        outputs = outputs or [name + "/output"]
        self.nodes.append(helper.make_node(kind, inputs, outputs, name=name, domain=domain, **attributes))
        return outputs[0]

    def linear(self, x, w, name, output=None):
        codes, scale = quantize(np.asarray(w))
        at = name.strip("/").replace("/", ".")
        ins = [x, self.stored(at + ".codes", codes), self.stored(at + ".scales", scale)]
        return self.op("MatMulNBits", ins, name, output and [output], MS, K=w.shape[1], N=w.shape[0], bits=8, block_size=BLOCK, accuracy_level=0)


def build(cfg, p):
    g, hd, nh, nk = Graph(), cfg["head"], cfg["heads"], cfg["kv_heads"]
    # GroupQueryAttention wants each row's last position and the length of the longest row.
    total = g.op("ReduceSum", ["attention_mask", g.small("axis_1", np.array([1], np.int64))], "/mask/ReduceSum", keepdims=1)
    last = g.op("Sub", [total, g.small("one", np.array([1], np.int64))], "/mask/Sub")
    last = g.op("Cast", [last], "/mask/last", to=TensorProto.INT32)
    longest = g.op("Gather", [g.op("Shape", ["attention_mask"], "/mask/Shape"), g.small("index_1", np.array(1, np.int64))], "/mask/Gather", axis=0)
    longest = g.op("Cast", [longest], "/mask/longest", to=TensorProto.INT32)
    angle = np.outer(np.arange(CONTEXT), model.frequencies(cfg))
    cos, sin = g.stored("cos_cache", np.cos(angle).astype(np.float32)), g.stored("sin_cache", np.sin(angle).astype(np.float32))
    residual = g.op("Gather", [g.stored("embed.weight", np.asarray(p["embed"], np.float32)), "input_ids"], "/embed/Gather")
    delta = None

    def norm(weight, name, final=False):
        nonlocal residual
        w = g.small(name.strip("/").replace("/", ".") + ".weight", np.asarray(weight, np.float32))
        if delta is None:
            return g.op("SimplifiedLayerNormalization", [residual, w], name, axis=-1, epsilon=cfg["eps"], stash_type=1)
        outputs = [name + "/output"] + ([] if final else ["", "", name + "/sum"])
        g.op("SkipSimplifiedLayerNormalization", [residual, delta, w], name, outputs, MS, epsilon=cfg["eps"])
        residual = name + "/sum"
        return outputs[0]

    for i in range(cfg["layers"]):
        at = f"/layers.{i}"
        h = norm(p[f"{i}.attn_norm"], at + "/attn_norm")
        qkv = g.linear(h, np.concatenate([p[f"{i}.q"], p[f"{i}.k"], p[f"{i}.v"]]), at + "/qkv")
        mix = g.op("GroupQueryAttention", [qkv, "", "", f"past_key_values.{i}.key", f"past_key_values.{i}.value", last, longest, cos, sin],
                   at + "/attention", [at + "/attention/output", f"present.{i}.key", f"present.{i}.value"], MS,
                   num_heads=nh, kv_num_heads=nk, scale=hd ** -0.5, do_rotary=1, rotary_interleaved=0, local_window_size=-1, softcap=0.0)
        delta = g.linear(mix, p[f"{i}.o"], at + "/o")
        h = norm(p[f"{i}.ffn_norm"], at + "/ffn_norm")
        gate, up = g.linear(h, p[f"{i}.gate"], at + "/gate"), g.linear(h, p[f"{i}.up"], at + "/up")
        silu = g.op("Mul", [gate, g.op("Sigmoid", [gate], at + "/Sigmoid")], at + "/silu")
        delta = g.linear(g.op("Mul", [silu, up], at + "/product"), p[f"{i}.down"], at + "/down")
    g.linear(norm(p["norm"], "/norm", final=True), p["embed"], "/lm_head", "logits")

    def info(name, kind, *shape):
        return helper.make_tensor_value_info(name, kind, shape)

    i64, f32, parts = TensorProto.INT64, TensorProto.FLOAT, [(i, k) for i in range(cfg["layers"]) for k in ("key", "value")]
    inputs = [info("input_ids", i64, "batch_size", "sequence_length"), info("attention_mask", i64, "batch_size", "total_sequence_length")]
    inputs += [info(f"past_key_values.{i}.{k}", f32, "batch_size", nk, "past_sequence_length", hd) for i, k in parts]
    outputs = [info("logits", f32, "batch_size", "sequence_length", cfg["vocab"])]
    outputs += [info(f"present.{i}.{k}", f32, "batch_size", nk, "total_sequence_length", hd) for i, k in parts]
    graph = helper.make_graph(g.nodes, "promptd_demo", inputs, outputs, initializer=g.tensors)
    onnx_model = helper.make_model(graph, ir_version=10, producer_name="promptd",
                                   opset_imports=[helper.make_opsetid("", 21), helper.make_opsetid(MS, 1)])
    return onnx_model, bytes(g.data)


def genai_config(cfg):
    return {
        "model": {
            "type": "llama", "vocab_size": cfg["vocab"], "context_length": CONTEXT,
            "bos_token_id": tokenizer.BOS, "eos_token_id": tokenizer.END, "pad_token_id": 0,
            "decoder": {
                "session_options": {"log_id": "onnxruntime-genai", "provider_options": []},
                "filename": "model.onnx",
                "head_size": cfg["head"], "hidden_size": cfg["hidden"], "num_attention_heads": cfg["heads"],
                "num_hidden_layers": cfg["layers"], "num_key_value_heads": cfg["kv_heads"],
                "inputs": {"input_ids": "input_ids", "attention_mask": "attention_mask",
                           "past_key_names": "past_key_values.%d.key", "past_value_names": "past_key_values.%d.value"},
                "outputs": {"logits": "logits", "present_key_names": "present.%d.key", "present_value_names": "present.%d.value"},
            },
        },
        "search": {"do_sample": False, "early_stopping": True, "max_length": CONTEXT, "min_length": 0, "num_beams": 1, "num_return_sequences": 1,
                   "past_present_share_buffer": True, "repetition_penalty": 1.0, "length_penalty": 1.0, "diversity_penalty": 0.0,
                   "no_repeat_ngram_size": 0, "temperature": 1.0, "top_k": 1, "top_p": 1.0},
    }


def write_manifest(folder):
    lines = ["# The files of the demo model. A folder whose files differ from this list is not the model its card describes."]
    for name in FILES:
        raw = (folder / name).read_bytes()
        lines += ["", "[[file]]", f'name = "{name}"', f'sha256 = "{hashlib.sha256(raw).hexdigest()}"', f"bytes = {len(raw)}"]
    for golden in GOLDEN:
        lines += ["", "[[golden]]"] + [f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in golden.items()]
    (folder / "manifest.toml").write_text("\n".join(lines) + "\n")


def main():
    a = argparse.ArgumentParser(description=__doc__)
    a.add_argument("checkpoint", type=Path)
    a.add_argument("out", type=Path)
    a.add_argument("--half", type=Path, help="also write the checkpoint's weights here in half precision, to start from or to compare")
    a = a.parse_args()
    here = Path(__file__).resolve().parent
    a.out.mkdir(parents=True, exist_ok=True)
    z = np.load(a.checkpoint)
    p = {k[2:]: z[k].astype(np.float32) for k in z.files if k.startswith("p/")}
    cfg = dict(model.SIZES, vocab=len(p["embed"]))
    graph, data = build(cfg, p)
    (a.out / "model.onnx").write_bytes(graph.SerializeToString(deterministic=True))
    (a.out / "model.onnx.data").write_bytes(data)
    (a.out / "genai_config.json").write_text(json.dumps(genai_config(cfg), indent=2) + "\n")
    tokenizer.write(a.out)
    schema = here.parent / "command.schema.json"
    if schema != a.out / "command.schema.json":
        (a.out / "command.schema.json").write_bytes(schema.read_bytes())
    write_manifest(a.out)
    if a.half:
        np.savez(a.half, step=z["step"], seconds=z["seconds"], tokens=z["tokens"], **{f"p/{k}": v.astype(np.float16) for k, v in p.items()})
    print(f"step {int(z['step'])}: {len(data)} bytes of weights in {a.out}")


if __name__ == "__main__":
    main()
