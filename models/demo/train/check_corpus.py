"""Checks the corpus: commands keep to the schema as written, text survives the tokenizer, nothing held back leaks into training."""
import argparse
import json
import re
from pathlib import Path

import words
from corpus import Grammar, command
from data import Packer
from make_eval import cases


def check_command(text, schema):
    got, fields = json.loads(text), schema["properties"]
    number, mode = fields["value"]["anyOf"]
    assert list(got) in (["device", "action"], ["device", "action", "value"]), text
    assert text == command(got["device"], got["action"], got.get("value")), f"not compact: {text}"
    assert 1 <= len(got["device"]) <= fields["device"]["maxLength"] and got["action"] in fields["action"]["enum"], text
    v = got.get("value")
    assert (v is not None) == (got["action"] in ("set", "dim")), text
    assert v is None or v in mode["enum"] or number["minimum"] <= v <= number["maximum"], text


def main():
    p = argparse.ArgumentParser(description=__doc__)
    here = Path(__file__).resolve().parent.parent
    p.add_argument("--tokenizer", type=Path, default=here / "tokenizer.json")
    p.add_argument("--documents", type=int, default=20000)
    a = p.parse_args()
    schema, packer = json.loads((here / "command.schema.json").read_text()), Packer(a.tokenizer)
    held_words = set(words.PLACES_HELD + words.OTHERS_HELD + [w for v in words.DEVICES_HELD.values() for w in v])
    held_zh = set(words.ZH_PLACES_HELD)
    texts, sentences, tokens, leaks = set(), 0, 0, 0
    for seed, pieces in ((20, None), (21, packer.pieces)):
        g = Grammar(seed, pieces=pieces)
        for _ in range(a.documents // 2):
            document = g.document()
            if any(w in m[1] for m in document for w in held_zh):
                continue  # as the packer does
            for _, text, kind, _ in document:
                ids = packer.encode(text)
                assert packer.tokenizer.decode(ids) == text, text
                tokens, sentences = tokens + len(ids), sentences + 1
                texts.add(text)
                if kind == "command":
                    check_command(text, schema)
                leaks += bool(held_words & set(re.findall(r"[A-Za-z]+", text)))
    asked = {c["messages"][-1]["content"] for c in cases() if c["kind"] != "greeting"}
    met = sorted(asked & texts)
    print(f"{sentences} texts, {len(texts)} different, {tokens} tokens; {leaks} with a held-back word; {len(met)} of {len(asked)} questions met: {met[:5]}")
    assert not leaks


if __name__ == "__main__":
    main()
