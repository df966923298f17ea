#!/usr/bin/env python3
"""Plays every golden file of the material against promptd, whole and streamed, with the material's own run_golden_http.py.

    golden.py --promptd PROGRAM --material DIR

A promptd is started for each model (with_promptd.py). Ends with 1 if a case fails. One case wants something else than promptd
promises: an answer that has a form is ended in it when its tokens run out (docs/protocol.md, "Forms"), and the reference stops in the
middle of a number.
"""
import argparse
import json
import os
import re
import subprocess
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
# Models, and the files that were made with them.
MODELS = {
    "stories260k-genai-fp32": ["genai-fp32", "chat", "constrained", "stop", "sampling"],
    "stories260k-genai-int4": ["genai-int4"],
    "stories260k-plain-fp32": ["plain-fp32", "chat", "stop"],
    "aidreams230k-genai-int4-acc4": ["genai-int4-acc4"],
    "aidreams230k-plain-fp16": ["plain-fp16"],
}
ENDED_IN_ITS_FORM = "stories260k-json_schema-nested-0"


def play(tool, socket, streamed, files):
    """The failures of all files, as printed."""
    command = [sys.executable, tool, "--uds", socket, "--model", "default", *(["--stream"] if streamed else []), *files]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    failures = []
    for line in done.stdout.splitlines():
        if not line.startswith("FAIL "):
            print(f"{'streamed' if streamed else 'whole   '}  {line}")
        elif line.split()[1] == ENDED_IN_ITS_FORM and line.split()[2:4] == ["200", "length"]:
            text = re.search(r"length '(.*?)' \| want", line).group(1)
            json.loads(text)
            print(f"          {ENDED_IN_ITS_FORM}: ended in its form")
        else:
            failures.append(line)
    if done.returncode not in (0, 1):
        failures.append(f"{tool} ended with {done.returncode}")
    return failures


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--promptd", help="start this program for each model")
    parser.add_argument("--material", required=True)
    parser.add_argument("--socket", help="play against what listens here, the files that follow")
    parser.add_argument("files", nargs="*")
    args = parser.parse_args()
    if args.socket:
        tool = os.path.join(args.material, "tools", "run_golden_http.py")
        failures = [line for streamed in (False, True) for line in play(tool, args.socket, streamed, args.files)]
        print("\n".join(failures), end="\n" if failures else "")
        sys.exit(1 if failures else 0)
    golden, wrong = os.path.join(args.material, "golden"), []
    played = {f"{model.split('-')[0]}-{kind}.jsonl" for model, kinds in MODELS.items() for kind in kinds}
    missing = {name for name in os.listdir(golden) if name.endswith(".jsonl")} - played
    if missing:
        sys.exit(f"no model is known for {sorted(missing)}")
    for model, kinds in MODELS.items():
        print(model, flush=True)
        files = [os.path.join(golden, f"{model.split('-')[0]}-{kind}.jsonl") for kind in kinds]
        command = [sys.executable, os.path.join(HERE, "with_promptd.py"), "--promptd", args.promptd]
        command += ["--model", os.path.join(args.material, "models", model), "--"]
        command += [sys.executable, os.path.abspath(__file__), "--material", args.material, "--socket", "{socket}", *files]
        if subprocess.run(command).returncode != 0:
            wrong.append(model)
    if wrong:
        sys.exit(f"not as the reference: {wrong}")
    print("All cases are as the reference.")


if __name__ == "__main__":
    main()
