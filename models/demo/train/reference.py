"""A reference in NumPy float64 for the exported folder: reads the graph's own weights, dequantizes them, keeps a KV cache."""
import json
from pathlib import Path

import numpy as np
import onnx
from jinja2 import Environment
from tokenizers import Tokenizer


class Reference:
    def __init__(self, folder):
        folder = Path(folder)
        self.config = json.loads((folder / "genai_config.json").read_text())["model"]
        graph = onnx.load(folder / "model.onnx").graph
        raw = {t.name: onnx.numpy_helper.to_array(t) for t in graph.initializer}
        self.w = {k: v.astype(np.float64) for k, v in raw.items() if v.dtype == np.float32}
        for name, codes in raw.items():
            if name.endswith(".codes"):
                scales = raw[name[:-6] + ".scales"].astype(np.float64)
                self.w[name[:-6]] = ((codes.astype(np.float64) - 128) * scales[..., None]).reshape(codes.shape[0], -1)
        one = next(n for n in graph.node if n.op_type == "SimplifiedLayerNormalization")
        self.eps = next(a.f for a in one.attribute if a.name == "epsilon")
        d = self.config["decoder"]
        self.layers, self.heads, self.kv_heads, self.head = (d[k] for k in ("num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_size"))
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        settings = json.loads((folder / "tokenizer_config.json").read_text())
        self.bos, self.end = settings["bos_token"], self.config["eos_token_id"]
        self.template = Environment(trim_blocks=True, lstrip_blocks=True).from_string(settings["chat_template"])

    def chat_ids(self, messages):
        text = self.template.render(messages=messages, bos_token=self.bos, eos_token="<|end|>", add_generation_prompt=True)
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def prompt_ids(self, prompt):
        return self.tokenizer.encode(prompt).ids  # the tokenizer itself puts the first token in front

    def norm(self, x, name):
        return x / np.sqrt(np.mean(x * x, -1, keepdims=True) + self.eps) * self.w[name + ".weight"]

    def rotate(self, x, start):
        half = self.head // 2
        cos, sin = (self.w[k][start:start + len(x), None] for k in ("cos_cache", "sin_cache"))
        a, b = x[..., :half], x[..., half:]
        return np.concatenate([a * cos - b * sin, b * cos + a * sin], -1)

    def step(self, ids, cache):
        """Logits [tokens, vocabulary] for new tokens behind the cache, which grows by them."""
        w, nh, nk, hd, n = self.w, self.heads, self.kv_heads, self.head, len(ids)
        start = len(cache[0][0]) if cache else 0
        x = w["embed.weight"][ids]
        for i in range(self.layers):
            at = f"layers.{i}"
            qkv = self.norm(x, at + ".attn_norm") @ w[at + ".qkv"].T
            q, k, v = np.split(qkv, [nh * hd, (nh + nk) * hd], -1)
            q, k, v = self.rotate(q.reshape(n, nh, hd), start), self.rotate(k.reshape(n, nk, hd), start), v.reshape(n, nk, hd)
            if len(cache) > i:
                k, v = np.concatenate([cache[i][0], k]), np.concatenate([cache[i][1], v])
                cache[i] = (k, v)
            else:
                cache.append((k, v))
            mix = np.empty((n, nh, hd))
            for h in range(nh):
                score = q[:, h] @ k[:, h * nk // nh].T / np.sqrt(hd)
                score[np.arange(len(k))[None] > start + np.arange(n)[:, None]] = -np.inf
                e = np.exp(score - score.max(-1, keepdims=True))
                mix[:, h] = e / e.sum(-1, keepdims=True) @ v[:, h * nk // nh]
            x = x + mix.reshape(n, -1) @ w[at + ".o"].T
            h = self.norm(x, at + ".ffn_norm")
            gate = h @ w[at + ".gate"].T
            x = x + (gate / (1 + np.exp(-gate)) * (h @ w[at + ".up"].T)) @ w[at + ".down"].T
        return self.norm(x, "norm") @ w["lm_head"].T

    def greedy(self, ids, limit=64):
        """-> generated ids without the end token, why it stopped, the smallest lead of a chosen token over the next."""
        cache, out, margin, new = [], [], np.inf, list(ids)
        limit = min(limit, self.config["context_length"] - len(ids))
        while len(out) < limit:
            logits = self.step(new, cache)[-1]
            second, first = np.argsort(logits)[-2:]
            margin = min(margin, logits[first] - logits[second])
            if first == self.end:
                return out, "stop", float(margin)
            out.append(int(first))
            new = [int(first)]
        return out, "length", float(margin)

    def text(self, ids):
        return self.tokenizer.decode(ids)
