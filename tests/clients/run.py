#!/usr/bin/env python3
"""Real clients against promptd on its Unix sockets: curl, socat, Python openai (newest, and an older 1.x), Python ollama,
LangChain, Node openai; and over TCP what Home Assistant sends.

Installs them into a folder of its own, each in an environment of its own, and says what each of them saw."""
import argparse
import pathlib
import shutil
import subprocess
import sys
import venv

HERE = pathlib.Path(__file__).resolve().parent

# Name, packages, script.
PYTHON = [
    ("openai-newest", ["openai"], "openai_client.py"),
    ("openai-1", ["openai==1.54.0", "httpx==0.27.2"], "openai_client.py"),
    ("ollama", ["ollama"], "ollama_client.py"),
    ("langchain", ["langchain-openai"], "langchain_client.py"),
]
# The same environments ask for vectors: of the demo model, which gives none, and of one that does.
EMBEDDINGS = [
    ("openai-newest", "embeddings_client.py", ["none", "vectors"]),
    ("openai-1", "embeddings_client.py", ["none", "vectors"]),
    ("langchain", "embeddings_langchain.py", ["vectors"]),
]

# A client takes seconds; none is waited for much longer, for some try again for minutes.
PATIENCE_SECONDS = 600


def run(name, command):
    print(f"== {name}", flush=True)
    try:
        return subprocess.run(command, timeout=PATIENCE_SECONDS).returncode == 0
    except subprocess.TimeoutExpired:
        print(f"  not done after {PATIENCE_SECONDS} s")
        return False


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--socket", required=True)
    parser.add_argument("--lines", help="the line socket")
    parser.add_argument("--tcp", help="address of the TCP listener")
    parser.add_argument("--key", help="the key for it")
    parser.add_argument("--into", required=True, type=pathlib.Path)
    parser.add_argument("--vectors", action="store_true", help="the model gives vectors: only those are asked for, by what is installed")
    args = parser.parse_args()
    failed = vectors(args, "vectors") if args.vectors else everything(args)
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")
    print("All clients are content.")


def vectors(args, gives):
    failed = []
    for name, script, cases in EMBEDDINGS:
        if gives in cases:
            python = args.into / name / "bin" / "python"
            if not run(f"{name}, embeddings", [python, HERE / script, args.socket, gives]):
                failed.append(f"{name}, embeddings")
    script = args.into / "node" / "embeddings_client.mjs"
    if script.exists() and not run("node openai, embeddings", ["node", script, args.socket, gives]):
        failed.append("node openai, embeddings")
    return failed


def everything(args):
    failed = []
    if not run("curl and socat", [sys.executable, HERE / "curl_client.py", args.socket, args.lines]):
        failed.append("curl and socat")
    for name, packages, script in PYTHON:
        place = args.into / name
        python = place / "bin" / "python"
        if not python.exists():
            venv.create(place, with_pip=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *packages], check=True)
        if not run(name, [python, HERE / script, args.socket]):
            failed.append(name)
    if not run("Home Assistant over TCP", [sys.executable, HERE / "home_assistant.py", args.tcp, args.key]):
        failed.append("Home Assistant")
    if shutil.which("npm"):
        place = args.into / "node"
        place.mkdir(parents=True, exist_ok=True)
        for script in ("openai_client.mjs", "embeddings_client.mjs"):
            shutil.copy(HERE / script, place)
        npm = ["npm", "install", "--silent", "--no-audit", "--no-fund", "--prefix", place, "openai@6", "undici@7"]
        subprocess.run(npm, check=True)
        if not run("node openai", ["node", place / "openai_client.mjs", args.socket]):
            failed.append("node openai")
    else:
        print("== node openai: there is no npm, not run")
    return failed + vectors(args, "none")


main()
