"""Makes the evaluation set: single questions about names and values that no training text holds, with the right answers."""
import argparse
import json
from pathlib import Path

from corpus import QUANTITIES, Grammar

SHARES = {"reading": 400, "unknown": 220, "command": 320, "greeting": 60}  # half of each English, half Chinese
SEED = 424242


def near_double(messages, expected, zh):
    """Whether another line of the context has the same quantity (or is a state too) and a name that contains the asked one or is part of it."""
    lines = []
    for text in "\n".join(m["content"] for m in messages).split("\n"):
        key, mark, value = text.partition("：" if zh else ": ")
        words = {what: q[5] if zh else " " + q[4] for what, q in QUANTITIES.items()}
        what = next((w for w, end in words.items() if key.endswith(end)), "switch")
        if mark and value:
            lines.append((key.removesuffix(words.get(what, "")), what, value))
    asked = next(f for f in lines if Grammar.answer(f, zh) == expected)
    return any(f[1] == asked[1] and (f[0] in asked[0] or asked[0] in f[0]) for f in lines if f is not asked)


def cases(seed=SEED, shares=SHARES):
    g, left, seen = Grammar(seed, held=True), {(k, l): n // 2 for k, n in shares.items() for l in ("en", "zh")}, set()
    while any(left.values()):
        doc = g.document(turns=1)
        answer, kind = doc[-1][1:3]
        zh = any("\u4e00" <= c <= "\u9fff" for c in "".join(m[1] for m in doc[:-1]))
        language = "zh" if zh else "en"
        key = tuple(m[1] for m in doc)
        if not left[kind, language] or key in seen:
            continue
        left[kind, language] -= 1
        seen.add(key)
        row = {"lang": language, "kind": kind, "messages": [{"role": r, "content": t} for r, t, *_ in doc[:-1]], "expected": answer}
        if kind == "reading":
            row["near"] = near_double(row["messages"], answer, zh)
        yield row


def main():
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("out", type=Path, nargs="?", default=Path(__file__).resolve().parent.parent / "eval.jsonl")
    a = p.parse_args()
    rows = list(cases())
    with open(a.out, "w", encoding="utf-8") as f:
        for i, row in enumerate(rows):
            f.write(json.dumps({"id": f"eval-{i:04}"} | row, ensure_ascii=False) + "\n")
    print(f"{len(rows)} cases in {a.out}")


if __name__ == "__main__":
    main()
