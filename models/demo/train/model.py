"""The demo model itself: its sizes, its structured starting weights and its forward pass in JAX."""
import math

import jax
import jax.numpy as jnp
import numpy as np

SIZES = dict(vocab=0, hidden=128, layers=5, heads=4, kv_heads=2, head=64, ffn=384, theta=500000.0, eps=1e-5)
# Which (layer, head) is shown where to look while it learns, see Guide in data.py. The heads of one purpose do the same twice.
GUIDED = {"gather": ((1, 0), (1, 2)), "look": ((3, 0), (4, 0)), "know": ((3, 1), (4, 1)), "copy": ((3, 2), (4, 2))}
WATCH = tuple(head for heads in GUIDED.values() for head in heads)
MATRICES = ("q", "k", "v", "o", "gate", "up", "down")


def frequencies(cfg):
    half = cfg["head"] // 2
    return cfg["theta"] ** (-np.arange(half) / half)


def init(cfg, seed, structured=True):
    """Starting weights. `structured` plants previous-token and copying heads, all of which stay trainable.

    Copying a reading out of the context is a two-step circuit (look one token back, then find where the same token
    stood before). From random weights it takes most of the training time to appear; here its outline is given:
    one coordinate of every embedding is a constant, layer 0 turns it into queries and keys whose rotary phase
    differs by one or two positions, and later layers start by comparing a token with its copies' predecessors.
    """
    rng = np.random.default_rng(seed)
    d, hd, nh, nk, f = cfg["hidden"], cfg["head"], cfg["heads"], cfg["kv_heads"], cfg["ffn"]

    def normal(rows, cols, std):
        return rng.standard_normal((rows, cols)) * std

    p = {"embed": normal(cfg["vocab"], d, 1.0), "norm": np.full(d, 0.25)}
    for i in range(cfg["layers"]):
        s = 0.5 / math.sqrt(d)
        p |= {f"{i}.attn_norm": np.ones(d), f"{i}.ffn_norm": np.ones(d),
              f"{i}.q": normal(nh * hd, d, s), f"{i}.k": normal(nk * hd, d, s), f"{i}.v": normal(nk * hd, d, s),
              f"{i}.o": normal(d, nh * hd, 0.2 / math.sqrt(nh * hd)),
              f"{i}.gate": normal(f, d, s), f"{i}.up": normal(f, d, s),
              f"{i}.down": normal(d, f, 0.2 / math.sqrt(f))}
    if structured:
        plant(cfg, p, rng)
    return {k: jnp.asarray(v, jnp.float32) for k, v in p.items()}


def plant(cfg, p, rng):
    d, hd, group = cfg["hidden"], cfg["head"], cfg["heads"] // cfg["kv_heads"]
    half = hd // 2
    freq = frequencies(cfg)
    slow = np.where(freq < 0.02)[0]  # turns little within a chat, so content can be compared across it
    dims = np.concatenate([slow, slow + half])
    m = len(dims)
    const = d - 1
    p["embed"][:, const] = 1.5

    def orthonormal(rows):
        q, _ = np.linalg.qr(rng.standard_normal((d - 1, rows)))
        return np.concatenate([q.T, np.zeros((rows, 1))], axis=1)  # leaves the constant coordinate alone

    def put(w, head, block):
        w[head * hd:(head + 1) * hd] *= 0.3
        w[head * hd + dims] = block

    see = orthonormal(m)  # what of a token is compared and copied
    back = [orthonormal(m), orthonormal(m)]  # where layer 0 writes the token one and two places back
    turn = np.linalg.qr(rng.standard_normal((m, m)))[0]
    every = np.pad(np.linalg.qr(rng.standard_normal((d - 1, d - 1)))[0], ((0, 2 * hd - d + 1), (0, 1)))
    fast = np.arange(8)
    for h, distance in enumerate((1, 2)):  # both share the first key/value head
        w = np.zeros(hd)
        w[fast], w[fast + half] = np.cos(distance * freq[fast]), -np.sin(distance * freq[fast])
        p["0.q"][h * hd:(h + 1) * hd] *= 0.1
        p["0.q"][h * hd:(h + 1) * hd, const] = 6.0 * w
        block = np.zeros((hd, d))
        block[dims] = back[h] * 0.9
        p["0.o"][:, h * hd:(h + 1) * hd] = block.T
    p["0.k"][:hd] *= 0.1
    p["0.k"][fast, const] = 6.0
    p["0.v"][:hd] = 0
    p["0.v"][dims] = see
    for i in range(1, cfg["layers"]):
        gain = 2.2 if i < 3 else 1.5
        # First group: find tokens preceded by the present one; second: by the present one and the one before.
        keys = [back[0], back[0] + turn @ back[1]] if i < 3 else [see, back[0]]
        for g in range(cfg["kv_heads"]):
            put(p[f"{i}.k"], g, gain * keys[g])
            v = np.zeros((hd, d))
            if i < 3:
                v[dims] = see
            else:  # these write the answer: one layer copies one half of a token's coordinates, the next layer the other
                v[:] = every[i % 2 * hd:][:hd]
            p[f"{i}.v"][g * hd:(g + 1) * hd] = v + 0.3 * p[f"{i}.v"][g * hd:(g + 1) * hd]
            for h in range(g * group, (g + 1) * group):
                if h % group == 1 and i != 2:
                    continue  # leave every other head unplanned
                query = see if g == 0 or i >= 3 else see + turn @ back[0]
                put(p[f"{i}.q"], h, gain * query)
                p[f"{i}.o"][:, h * hd:(h + 1) * hd] = 0.5 * v.T + 0.3 * p[f"{i}.o"][:, h * hd:(h + 1) * hd]


def rms(x, w, eps):
    x = x.astype(jnp.float32)
    return x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + eps) * w


def forward(cfg, p, tokens, segments, dtype=jnp.bfloat16, watch=()):
    """Hidden states [rows, length, hidden] after the last norm; tokens see only earlier ones of their own segment.

    -> hidden, and for each (layer, head) of `watch` the logarithm of its attention [rows, from, to].
    """
    b, t = tokens.shape
    nh, nk, hd = cfg["heads"], cfg["kv_heads"], cfg["head"]
    angle = jnp.outer(jnp.arange(t), jnp.asarray(frequencies(cfg)))
    cos, sin = jnp.cos(angle)[None, :, None], jnp.sin(angle)[None, :, None]
    place = jnp.arange(t)
    allowed = (segments[:, :, None] == segments[:, None, :]) & (place[:, None] >= place[None, :])
    bias = jnp.where(allowed, 0.0, -1e9).astype(jnp.float32)
    bias = jnp.tile(bias, (1, nh // nk, 1))[:, None]

    def linear(x, w):
        return jax.lax.dot_general(x.astype(dtype), w.astype(dtype), (((x.ndim - 1,), (1,)), ((), ())))

    def rotate(x):
        a, c = jnp.split(x.astype(jnp.float32), 2, -1)
        return jnp.concatenate([a * cos - c * sin, c * cos + a * sin], -1).astype(dtype)

    x, watched = p["embed"][tokens], {}
    for i in range(cfg["layers"]):
        h = rms(x, p[f"{i}.attn_norm"], cfg["eps"])
        q = rotate(linear(h, p[f"{i}.q"]).reshape(b, t, nh, hd) * hd ** -0.5)
        k = rotate(linear(h, p[f"{i}.k"]).reshape(b, t, nk, hd)).transpose(0, 2, 1, 3)
        v = linear(h, p[f"{i}.v"]).reshape(b, t, nk, hd).transpose(0, 2, 1, 3)
        # The query heads of one key/value head stand under each other: fewer, larger products.
        q = q.transpose(0, 2, 1, 3).reshape(b, nk, (nh // nk) * t, hd)
        score = jnp.einsum("bgxh,bgsh->bgxs", q, k).astype(jnp.float32) + bias
        for h in (h for layer, h in watch if layer == i):
            r = h % (nh // nk) * t
            watched[i, h] = jax.nn.log_softmax(score[:, h // (nh // nk), r:r + t], -1)
        mix = jnp.einsum("bgxs,bgsh->bgxh", jax.nn.softmax(score, -1).astype(dtype), v)
        mix = mix.reshape(b, nh, t, hd).transpose(0, 2, 1, 3)
        x = x + linear(mix.reshape(b, t, nh * hd), p[f"{i}.o"])
        h = rms(x, p[f"{i}.ffn_norm"], cfg["eps"])
        x = x + linear(jax.nn.silu(linear(h, p[f"{i}.gate"])) * linear(h, p[f"{i}.up"]), p[f"{i}.down"])
    return rms(x, p["norm"], cfg["eps"]), watched


def logits_at(p, hidden, dtype=jnp.bfloat16):
    return (hidden.astype(dtype) @ p["embed"].astype(dtype).T).astype(jnp.float32)
