#!/usr/bin/env python3
"""Draw the figures of peers.py as an SVG: each contender's speed as a part of llama.cpp's (or of the first other one's).

    chart.py peers-1.1b.json peers-7b.json > docs/performance.svg
"""

import json
import sys
from html import escape

WIDTH, LABEL, BAR, GAP, TOP = 760, 190, 13, 12, 64
COLOURS = {"promptd": "#1f6f8b", "llama.cpp": "#b5651d", "genai": "#7a7a7a", "loop": "#b9b9b9"}
NAMES = {"promptd": "promptd", "llama.cpp": "llama.cpp Q4_0", "genai": "onnxruntime-genai", "loop": "bare ONNX Runtime loop"}
WORDS = {
    "shared first_seconds": "first token, 528 tokens",
    "shared second_seconds": "the same, 512 kept",
    "load_and_first_token_seconds": "load and first token",
}


def words(key):
    if key in WORDS:
        return WORDS[key]
    first, *rest = key.split()
    if first in ("read", "write"):
        return f"{first} {' '.join(rest)} tokens"
    return f"{first} answers at once" if first != "1" else "1 answer"


def figure(report, y, out):
    medians = report["medians"]
    base = "llama.cpp" if "llama.cpp" in medians else next(name for name in medians if name != "promptd")
    keys = [key for key in medians["promptd"] if key in medians[base] and key not in ("memory", "load_seconds")]
    speed = lambda name, key: 1 / medians[name][key] if key.endswith("seconds") else medians[name][key]
    ratio = lambda name, key: speed(name, key) / speed(base, key)
    names = [name for name in COLOURS if name in medians]
    most = max(2.0, *(min(ratio(name, key), 4.0) for name in names for key in keys if key in medians[name]))
    scale = (WIDTH - LABEL - 120) / most
    out.append(f'<text x="10" y="{y + 16}" class="h">{escape(report["model"])}, {report["threads"]} threads, '
               f'{escape(report["machine"]["processor"])}; speed as a part of {NAMES[base]}\'s</text>')
    x = 10
    for name in names:
        out.append(f'<rect x="{x}" y="{y + 28}" width="12" height="12" fill="{COLOURS[name]}"/>')
        out.append(f'<text x="{x + 17}" y="{y + 38}">{NAMES[name]}</text>')
        x += 40 + 7 * len(NAMES[name])
    y += TOP
    begin = y
    for key in keys:
        out.append(f'<text x="{LABEL - 8}" y="{y + BAR * len(names) / 2 + 4}" text-anchor="end">{escape(words(key))}</text>')
        for name in names:
            if key in medians[name]:
                value, exact = ratio(name, key), medians[name][key]
                unit = "s" if key.endswith("seconds") else "tokens/s"
                width = min(value, most) * scale
                out.append(f'<rect x="{LABEL}" y="{y}" width="{width:.1f}" height="{BAR - 2}" fill="{COLOURS[name]}"/>')
                out.append(f'<text x="{LABEL + width + 5:.1f}" y="{y + BAR - 4}" class="n">{value:.2f} '
                           f'({exact:.3g} {unit})</text>')
            y += BAR
        y += GAP
    out.append(f'<line x1="{LABEL + scale:.1f}" y1="{begin - 6}" x2="{LABEL + scale:.1f}" y2="{y - GAP + 4}" class="one"/>')
    return y + 16


def main():
    out, y = [], 8
    for path in sys.argv[1:]:
        with open(path) as file:
            y = figure(json.load(file), y, out)
    print(f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {y}" width="{WIDTH}" height="{y}">')
    print("<style>text{font:12px sans-serif;fill:#222}.h{font-weight:bold}.n{font-size:10px;fill:#555}"
          ".one{stroke:#222;stroke-dasharray:3 3}</style>")
    print('<rect width="100%" height="100%" fill="#fff"/>')
    print("\n".join(out))
    print("</svg>")


if __name__ == "__main__":
    main()
