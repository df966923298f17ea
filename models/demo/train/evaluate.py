"""Plays the evaluation set through a server's Unix socket, or a folder directly, and says whether it stays above the floor."""
import argparse
import concurrent.futures
import http.client
import json
import socket
import sys
from pathlib import Path

UNKNOWN = {"en": "I do not know.", "zh": "我不知道。"}
# Shares by kind: what must at least be right, and what may at most go wrong.
FLOOR = {"reading": ("right", 0.85), "command": ("right", 0.90)}
CEILING = {"unknown": ("made up", 0.05), "reading": ("wrongly unknown", 0.05)}


class UnixConnection(http.client.HTTPConnection):
    def __init__(self, path):
        super().__init__("localhost", timeout=120)
        self.path = path

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self.path)


def over_socket(path, model, schema):
    form = {} if schema is None else {"response_format": {"type": "json_schema", "json_schema": {"name": "command", "schema": schema}}}

    def ask(messages):
        body = json.dumps({"model": model, "messages": messages, "temperature": 0, "max_tokens": 64, **form})
        c = UnixConnection(path)
        try:
            c.request("POST", "/v1/chat/completions", body.encode(), {"Content-Type": "application/json"})
            r = c.getresponse()
            text = r.read()
        finally:
            c.close()
        if r.status != 200:
            raise RuntimeError(f"status {r.status}: {text[:300]!r}")
        return json.loads(text)["choices"][0]["message"]["content"]
    return ask


def directly(folder):
    from reference import Reference  # only here, so that playing over a socket needs nothing but the standard library
    from runtime import Runtime
    words, runtime = Reference(folder), Runtime(folder)
    return lambda messages: words.text(runtime.greedy(words.chat_ids(messages))[0])


def judge(case, text):
    if text in [case["expected"], *case.get("accept", [])]:
        return "right"
    if case["kind"] == "unknown":
        return "made up"
    if case["kind"] == "reading" and text in UNKNOWN.values():
        return "wrongly unknown"
    return "wrong"


def fault(text, schema):
    """What is wrong with a command by its schema, as far as command.schema.json goes; None if nothing is."""
    try:
        command = json.loads(text)
    except ValueError:
        return "no JSON"
    if not isinstance(command, dict) or not set(schema["required"]) <= set(command) <= set(schema["properties"]):
        return "wrong keys"
    device = schema["properties"]["device"]
    if not isinstance(command["device"], str) or not device["minLength"] <= len(command["device"]) <= device["maxLength"]:
        return "wrong device"
    if command["action"] not in schema["properties"]["action"]["enum"]:
        return "wrong action"
    number, mode = schema["properties"]["value"]["anyOf"]
    value = command.get("value", number["minimum"])
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not (value in mode["enum"] or is_number and number["minimum"] <= value <= number["maximum"]):
        return "wrong value"
    return None


def table(rows):
    counts = {}
    for case, _, verdict in rows:
        keys = [(case["kind"], language) for language in (case["lang"], "all")]
        if "near" in case:  # readings apart by whether the context has a second line easily taken for the asked one
            keys += [("- double" if case["near"] else "- plain", language) for language in (case["lang"], "all")]
        for key in keys:
            c = counts.setdefault(key, {"cases": 0, "right": 0, "made up": 0, "wrongly unknown": 0, "wrong": 0})
            c["cases"] += 1
            c[verdict] += 1
    return counts


def main():
    p = argparse.ArgumentParser(description=__doc__)
    where = p.add_mutually_exclusive_group(required=True)
    where.add_argument("--socket", help="Unix socket of the server")
    where.add_argument("--direct", type=Path, help="model folder, played with ONNX Runtime in this process")
    p.add_argument("--eval", type=Path, default=Path(__file__).resolve().parent.parent / "eval.jsonl")
    p.add_argument("--model", default="demo")
    p.add_argument("--json", type=Path, help="write every answer and the figures here")
    p.add_argument("--limit", type=int)
    p.add_argument("--schema", type=Path, help="ask the commands alone, held to this JSON Schema: none may break it")
    p.add_argument("--threads", type=int, default=4)
    a = p.parse_args()
    cases = [json.loads(line) for line in open(a.eval, encoding="utf-8")]
    schema = json.loads(a.schema.read_text(encoding="utf-8")) if a.schema else None
    if schema:
        cases = [case for case in cases if case["kind"] == "command"]
    if a.limit:  # spread over the set, so that every kind is in it
        cases = cases[::max(1, len(cases) // a.limit)][:a.limit]
    ask = over_socket(a.socket, a.model, schema) if a.socket else directly(a.direct)
    with concurrent.futures.ThreadPoolExecutor(a.threads if a.socket else 1) as pool:
        texts = list(pool.map(lambda c: ask(c["messages"]), cases))
    rows = [(c, t, judge(c, t)) for c, t in zip(cases, texts)]
    counts, failed = table(rows), []
    print(f"{'kind':10} {'language':8} {'cases':>6} {'right':>8} {'made up':>8} {'wrongly unknown':>16} {'otherwise wrong':>16}")
    order = ["reading", "- plain", "- double", "unknown", "command", "greeting"]
    for (kind, language), c in sorted(counts.items(), key=lambda kv: (order.index(kv[0][0]), kv[0][1])):
        share = {k: c[k] / c["cases"] for k in ("right", "made up", "wrongly unknown", "wrong")}
        print(f"{kind:10} {language:8} {c['cases']:6} {share['right']:8.1%} {share['made up']:8.1%} {share['wrongly unknown']:16.1%} {share['wrong']:16.1%}")
        if kind in FLOOR and share[FLOOR[kind][0]] < FLOOR[kind][1]:
            failed.append(f"{kind} ({language}): {share[FLOOR[kind][0]]:.1%} right, at least {FLOOR[kind][1]:.0%} wanted")
        if kind in CEILING and share[CEILING[kind][0]] > CEILING[kind][1]:
            failed.append(f"{kind} ({language}): {share[CEILING[kind][0]]:.1%} {CEILING[kind][0]}, at most {CEILING[kind][1]:.0%} wanted")
    if schema:  # the floors are for what the model does by itself
        broken = [f"{c['id']} is not valid by the schema ({fault(t, schema)}): {t}" for c, t, _ in rows if fault(t, schema)]
        failed = broken
        print(f"valid by {a.schema.name}: {len(rows) - len(broken)} of {len(rows)}")
    if a.json:
        figures = {f"{k}/{l}": c for (k, l), c in sorted(counts.items())}
        answers = [{"id": c["id"], "lang": c["lang"], "kind": c["kind"], "expected": c["expected"], "answer": t, "verdict": v} for c, t, v in rows]
        a.json.write_text(json.dumps({"figures": figures, "below": failed, "answers": answers}, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    for line in failed:
        print("below the floor:", line)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
