"""Trains the demo model with JAX (CPU or GPU): Muon for the matrices, Adam for the rest; resumes from its checkpoint."""
import argparse
import collections
import concurrent.futures
import json
import multiprocessing
import os
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import model
import tokenizer
from data import Guide, Packer

HERE = Path(__file__).resolve().parent
SHAPES = {128: (32, 64), 256: (16, 128), 512: (8, 240)}  # row length: rows a step, places a row
CHUNK = 64  # steps whose rows are made at once
# Shares of the run: where the text grows harder (see STAGES in data.py), where the rate begins to fall to zero, and from where to where the
# guide fades. It stays on a little, so that what it taught is not given up for a last bit of loss.
HARDER, DECAY, FADE, LEAST_GUIDE = (0.1, 0.45), 0.45, (0.4, 0.8), 0.2
CHECK_LENGTH = 128


def stage_of(chunk, steps):
    return sum(chunk * CHUNK >= share * steps for share in HARDER)


def shape_of(chunk, stage):
    """Long rows for the many look-ups at first, then mostly short ones, which are cheapest; a few of 512, so that all positions are known."""
    return 512 if chunk % 16 == 15 else 256 if stage == 0 or chunk % 4 == 2 else 128


def make_chunk(tokenizer_file, seed, chunk, steps):
    stage = stage_of(chunk, steps)
    length = shape_of(chunk, stage)
    rows, places = SHAPES[length]
    return Packer(tokenizer_file).rows(seed * 1_000_003 + chunk, CHUNK * rows, length, places, stage)


def orthogonalize(g):
    """Newton-Schulz iteration: the nearest matrix with equal singular values, about."""
    a, b, c = 3.4445, -4.7750, 2.0315
    tall = g.shape[0] > g.shape[1]
    x = (g.T if tall else g)
    x = x / (jnp.linalg.norm(x) + 1e-7)
    for _ in range(5):
        s = x @ x.T
        x = a * x + (b * s + c * s @ s) @ x
    return x.T if tall else x


def update(params, grads, state, step, lr):
    new, moved = {}, {}
    norm = jnp.sqrt(sum(jnp.sum(g * g) for g in grads.values()))
    clip = jnp.minimum(1.0, 1.0 / (norm + 1e-6))
    for name, p in params.items():
        g = grads[name] * clip
        if name.split(".")[-1] in model.MATRICES:
            m = 0.95 * state[name][0] + g
            moved[name] = (m,)
            direction = orthogonalize(g + 0.95 * m) * 0.2 * max(p.shape) ** 0.5
            new[name] = p * (1 - 0.02 * lr * 0.5) - lr * direction
        else:
            m, v = state[name]
            m, v = 0.9 * m + 0.1 * g, 0.98 * v + 0.02 * g * g
            moved[name] = (m, v)
            t = step + 1
            new[name] = p - lr * (0.5 if name == "embed" else 0.3) * (m / (1 - 0.9 ** t)) / (jnp.sqrt(v / (1 - 0.98 ** t)) + 1e-8)
    return new, moved, norm


def guide_losses(watched, group, guide):
    """How far the guided heads look from where they should, per purpose: mean cross entropy less the target's own entropy."""
    out = {}
    for purpose, heads in model.GUIDED.items():
        to = guide[purpose].astype(jnp.int32)
        if purpose == "gather":
            valid = to > 0
            members = ((to[:, :, None] == group[:, None, :]) & valid[:, :, None]).astype(jnp.float32)
            members /= jnp.maximum(members.sum(-1, keepdims=True), 1)
            rows = [jnp.sum(members * (jnp.log(members + 1e-9) - watched[h]), -1) for h in heads]
        else:
            valid = to >= 0
            rows = [-jnp.take_along_axis(watched[h], jnp.maximum(to, 0)[:, :, None], -1)[..., 0] for h in heads]
        out[purpose] = sum(jnp.sum(jnp.where(valid, x, 0)) for x in rows) / (len(heads) * jnp.maximum(valid.sum(), 1))
    return out


def loss_of(cfg, params, batch, dtype, strength):
    tokens, segments, index, target, weight, group, *guide = batch
    hidden, watched = model.forward(cfg, params, tokens.astype(jnp.int32), segments, dtype, model.WATCH)
    hidden = jnp.take_along_axis(hidden, index.astype(jnp.int32)[:, :, None], 1)
    logits = model.logits_at(params, hidden, dtype)
    picked = jnp.take_along_axis(logits, target.astype(jnp.int32)[:, :, None], -1)[..., 0]
    loss = jnp.sum((jax.nn.logsumexp(logits, -1) - picked) * weight) / jnp.sum(weight)
    guides = guide_losses(watched, group, dict(zip(Guide.NAMES[1:], guide, strict=True)))
    return loss + strength * sum(guides.values()), (loss, guides)


def rate(a, step):
    """Warm up, stay, then fall linearly to zero."""
    return a.lr * min(1.0, (step + 1) / 100, (a.steps - step) / (a.steps * (1 - DECAY)))


def guide_strength(a, step):
    done = (step / a.steps - FADE[0]) / (FADE[1] - FADE[0])
    return a.guide * (1 - min(max(done, 0.0), 1.0) * (1 - LEAST_GUIDE))


def save(path, params, state, step, seconds, tokens):
    flat = {f"p/{k}": np.asarray(v) for k, v in params.items()}
    flat |= {f"s{i}/{k}": np.asarray(x) for k, v in state.items() for i, x in enumerate(v)}
    tmp = path.with_suffix(".tmp.npz")
    np.savez(tmp, step=step, seconds=seconds, tokens=tokens, **flat)
    os.replace(tmp, path)


def rest(params):
    """The optimizer's state before the first step."""
    return {k: (jnp.zeros(v.shape),) * (1 if k.split(".")[-1] in model.MATRICES else 2) for k, v in params.items()}


def load(path):
    """A checkpoint; one that holds weights alone is continued with the optimizer at rest."""
    z = np.load(path)
    params = {k[2:]: jnp.asarray(z[k]) for k in z.files if k.startswith("p/")}
    state = {k: tuple(jnp.asarray(z[f"s{i}/{k}"]) if f"s{i}/{k}" in z.files else s for i, s in enumerate(v)) for k, v in rest(params).items()}
    params = {k: v.astype(jnp.float32) for k, v in params.items()}
    return params, state, int(z["step"]), float(z["seconds"]), int(z["tokens"])


def check(predict, params, sets):
    """Share of answers of which every token is the likeliest: just what greedy generation would get right; and of looks at the right place."""
    out = {}
    for label, (tokens, segments, look, spans) in sets.items():
        right = collections.defaultdict(list)
        parts = [predict(params, tokens[i:i + 32], segments[i:i + 32]) for i in range(0, len(tokens), 32)]
        got, *looks = (np.concatenate(x) for x in zip(*parts))
        for row, start, end, labels in spans:
            for name in labels:
                right[name].append(bool((got[row, start - 1:end - 1] == tokens[row, start:end]).all()))
        out[label] = {k: round(float(np.mean(v)), 3) for k, v in sorted(right.items())}
        out[label]["look"] = [round(float((x == look)[look >= 0].mean()), 3) for x in looks]
    return out


def main():
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--run", type=Path, default=HERE.parent / "run")
    p.add_argument("--seed", type=int, default=20)
    p.add_argument("--steps", type=int, default=4300, help="length of the whole run, to which its stages and the decay are fitted")
    p.add_argument("--lr", type=float, default=0.008)
    p.add_argument("--guide", type=float, default=0.5, help="weight of the guided heads' loss at first")
    p.add_argument("--check-every", type=int, default=300)
    p.add_argument("--save-every", type=int, default=200)
    p.add_argument("--plain-start", action="store_true", help="ordinary random starting weights")
    p.add_argument("--float32", action="store_true", help="multiply in float32 instead of bfloat16")
    a = p.parse_args()
    a.run.mkdir(parents=True, exist_ok=True)
    tokenizer.write(a.run / "tok")
    words = a.run / "tok" / "tokenizer.json"
    packer = Packer(words)
    cfg = dict(model.SIZES, vocab=packer.tokenizer.get_vocab_size())
    dtype = jnp.float32 if a.float32 else jnp.bfloat16
    point = a.run / "checkpoint.npz"
    if point.exists():
        params, state, step, seconds, seen = load(point)
    else:
        params = model.init(cfg, a.seed, not a.plain_start)
        state, step, seconds, seen = rest(params), 0, 0.0, 0

    @jax.jit
    def train_step(params, state, batch, step, lr, strength):
        (_, losses), grads = jax.value_and_grad(lambda q: loss_of(cfg, q, batch, dtype, strength), has_aux=True)(params)
        params, state, norm = update(params, grads, state, step, lr)
        return params, state, losses, norm

    @jax.jit
    def predict(params, tokens, segments):
        hidden, watched = model.forward(cfg, params, tokens.astype(jnp.int32), segments, dtype, model.GUIDED["look"])
        return jnp.argmax(model.logits_at(params, hidden, dtype), -1), *(jnp.argmax(x, -1) for x in watched.values())

    sets = {"unseen": packer.check_set(991, 480, CHECK_LENGTH, True), "seen": packer.check_set(992, 96, CHECK_LENGTH, False)}
    log = open(a.run / "log.jsonl", "a", buffering=1)

    def note(**what):
        line = json.dumps(what, ensure_ascii=False)
        print(line, flush=True)
        log.write(line + "\n")

    note(start=step, parameters=sum(int(v.size) for v in params.values()), args={k: str(v) for k, v in vars(a).items()})
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        chunk = step // CHUNK
        ahead = pool.submit(make_chunk, words, a.seed, chunk, a.steps)
        losses, last = [], time.time()
        while step < a.steps:
            rows = ahead.result()
            ahead = pool.submit(make_chunk, words, a.seed, chunk + 1, a.steps)
            per = SHAPES[rows[0].shape[1]][0]
            while step < min(a.steps, (chunk + 1) * CHUNK):
                i = (step % CHUNK) * per
                batch = tuple(x[i:i + per] for x in rows)
                params, state, loss, norm = train_step(params, state, batch, step, rate(a, step), guide_strength(a, step))
                losses.append([float(loss[0]), *map(float, loss[1].values())])
                seen += batch[0].size
                step += 1
                if step % 100 == 0:
                    now = time.time()
                    seconds, last = seconds + now - last, now
                    names = ("loss", *model.GUIDED)
                    note(step=step, **dict(zip(names, np.mean(losses, 0).round(4).tolist(), strict=True)), norm=round(float(norm), 2), tokens=seen,
                         seconds=round(seconds), lr=round(rate(a, step), 6))
                    losses = []
                if step % a.save_every == 0 or step == a.steps:
                    save(point, params, state, step, seconds, seen)
                if step % a.check_every == 0 or step == a.steps:
                    note(step=step, **check(predict, params, sets))
            chunk += 1


if __name__ == "__main__":
    main()
