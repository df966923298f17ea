"""Makes golden.jsonl: greedy texts of the exported folder by the NumPy reference, each compared with ONNX Runtime."""
import argparse
import json
from pathlib import Path

from corpus import Grammar
from reference import Reference
from runtime import Runtime

HOUSE = "greenhouse temperature: 21.5 °C\ngreenhouse humidity: 63 %\ngarage door: open\nkitchen light: off"
HAUS_ZH = "温室温度：21.5 °C\n温室湿度：63 %\n车库门：开着\n厨房灯：关着"
CHATS = [
    (HOUSE, "What is the temperature in the greenhouse?"), (HOUSE, "How humid is the greenhouse?"), (HOUSE, "Is the garage door open?"),
    (HOUSE, "Is the kitchen light on?"), (HOUSE, "What is the temperature of the cellar?"), (HOUSE, "Tell me the greenhouse pressure."),
    (HOUSE, "Turn on the kitchen light."), (HOUSE, "Close the garage door."), (None, "Set the bedroom heater to 21.5 degrees."),
    (None, "Dim the hallway lamp to 30 %."), (None, "Hello"), (None, "Who are you?"), (None, "What can you do?"), (None, "Lock the front door lock."),
    (HAUS_ZH, "温室的温度是多少？"), (HAUS_ZH, "温室湿度多少？"), (HAUS_ZH, "车库门开着吗？"), (HAUS_ZH, "厨房灯是什么状态？"), (HAUS_ZH, "地下室的温度是多少？"),
    (HAUS_ZH, "温室的气压是多少？"), (HAUS_ZH, "打开厨房灯。"), (HAUS_ZH, "关闭车库门。"), (None, "把客厅空调设为26度。"), (None, "你好"), (None, "你是谁？"),
]
PROMPTS = ["greenhouse temperature: 21.5 °C\n", "kitchen light: on\ngarage door: closed\nThe kitchen light", "温室温度：21.5 °C\n", "客厅灯：开着\n客厅灯",
           "The cellar humidity is", "Hello"]
TURNS = [[("user", "Hello"), ("assistant", "Hello! How can I help?"), ("user", "Turn off the garage lamp.")],
         [("system", HOUSE), ("user", "How warm is the greenhouse?"), ("assistant", "The greenhouse is at 21.5 °C."), ("user", "And the garage door?")],
         [("system", HAUS_ZH), ("user", "打开厨房灯。"), ("assistant", '{"device":"厨房灯","action":"on"}'), ("user", "温室的湿度呢？")]]


def messages():
    for system, user in CHATS:
        yield ([{"role": "system", "content": system}] if system else []) + [{"role": "user", "content": user}]
    for turns in TURNS:
        yield [{"role": r, "content": t} for r, t in turns]
    g = Grammar(31337, held=True)
    for _ in range(12):
        yield [{"role": r, "content": t} for r, t, *_ in g.document(turns=2)[:-1]]


def main():
    p = argparse.ArgumentParser(description=__doc__)
    here = Path(__file__).resolve().parent.parent
    p.add_argument("folder", type=Path, nargs="?", default=here)
    p.add_argument("--out", type=Path, default=here / "golden.jsonl")
    p.add_argument("--max-tokens", type=int, default=64)
    p.add_argument("--least-margin", type=float, default=0.01, help="leave out cases where two tokens are nearly equal")
    a = p.parse_args()
    reference, runtime = Reference(a.folder), Runtime(a.folder)
    asked = [("chat", m, reference.chat_ids(m)) for m in messages()] + [("completion", t, reference.prompt_ids(t)) for t in PROMPTS]
    kept = 0
    with open(a.out, "w", encoding="utf-8") as f:
        for kind, what, ids in asked:
            out, reason, margin = reference.greedy(ids, a.max_tokens)
            if margin < a.least_margin:
                print(f"left out, margin {margin:.4f}: {what}")
                continue
            if runtime.greedy(ids, a.max_tokens) != (out, reason):
                raise SystemExit(f"ONNX Runtime differs from the reference: {what}")
            row = {"id": f"golden-{kept:02}", "kind": kind, "messages" if kind == "chat" else "prompt": what, "max_tokens": a.max_tokens,
                   "prompt_ids": ids, "greedy_ids": out, "text": reference.text(out), "finish_reason": reason, "min_margin": round(margin, 4)}
            f.write(json.dumps(row, ensure_ascii=False) + "\n")
            kept += 1
    print(f"{kept} cases in {a.out}, the same in ONNX Runtime")


if __name__ == "__main__":
    main()
