#!/usr/bin/env python3
"""Whether promptd says on a GPU what it says on the CPU: the whole service with one small trained model after the other.

    run.py --promptd PROGRAM --library LIBONNXRUNTIME --material DIR --work DIR [--bench FOLDER …]

Every model answers the prompts of its golden file, one after the other and eight at once, a long prompt in several chunks, and the same
beginning twice; first on the CPU, then on the GPU. The folders with half precision are written for it (half.py). `--bench` measures
further folders with `promptd bench` on the GPU, with the memory that the GPU has in use, into WORK/bench-NAME.json. Needs the Python
package `onnx`, and a libonnxruntime with CUDA. Ends with 1 where an answer differs.
"""
import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.dirname(HERE))
import demo  # noqa: E402

# A model, whether it is to be written in half precision first, how many sentences of 55 tokens its long prompt has, and how many answers
# in a hundred are the same at least. A prompt that is longer than a chunk of 64 is read in several steps, and found in the cache when it
# comes again. Weights of four bits are multiplied in half precision, by one kernel for one row and by another for several: they round
# otherwise, and where two tokens are as likely as each other that decides.
MODELS = [
    ("stories260k-genai-fp32", False, 6, 100),
    ("stories260k-genai-fp32", True, 6, 100),
    ("stories260k-genai-int4", True, 6, 80),
    ("stories260k-plain-fp32", False, 6, 100),
    ("aidreams230k-plain-fp16", False, 1, 100),
]
SLOTS = 8
# Small models load at once, CUDA in seconds.
demo.PATIENCE_SECONDS = 20
SENTENCE = "Once upon a time there was a little girl named Lily. She had a red ball and a big dog. "


class Service(demo.House):
    """promptd with one model and a provider, without a broker."""

    def __init__(self, args, model, provider):
        super().__init__(os.path.abspath(args.promptd), tempfile.mkdtemp(prefix="promptd-", dir="/tmp"))
        config = os.path.join(self.folder, "promptd.toml")
        with open(config, "w", encoding="utf-8") as file:
            file.write(f"[model]\npath = {json.dumps(os.path.abspath(model))}\nslots = {SLOTS}\n")
            file.write(f"[runtime]\nlibrary = {json.dumps(os.path.abspath(args.library))}\nprovider = {json.dumps(provider)}\n")
            file.write(f"[socket]\npath = {json.dumps(self.http)}\n[state]\ndir = {json.dumps(os.path.join(self.folder, 'state'))}\n")
        self.config = config

    def up(self):
        self.wait_until_ready(self.start("promptd", [self.promptd, "serve", "--config", self.config]))

    def complete(self, prompt):
        connection = demo.UnixConnection(self.http)
        try:
            body = {"model": "default", "prompt": prompt, "temperature": 0, "max_tokens": 48}
            connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
            answer = json.loads(connection.getresponse().read())
        finally:
            connection.close()
        if "choices" not in answer:
            raise demo.Failure(f"no answer: {answer}")
        cached = (answer["usage"].get("prompt_tokens_details") or {}).get("cached_tokens", 0)
        return answer["choices"][0]["text"], cached

    def log(self):
        with open(os.path.join(self.folder, "promptd.log"), encoding="utf-8", errors="replace") as file:
            return file.read()


def answers(args, model, provider, prompts, long):
    """What a model says: one after the other, eight at once, and after a shared beginning; and how long it took."""
    service = Service(args, model, provider)
    try:
        service.up()
        began = time.monotonic()
        alone = [service.complete(prompt)[0] for prompt in prompts]
        took = time.monotonic() - began
        with ThreadPoolExecutor(SLOTS) as pool:
            together = [text for text, _ in pool.map(service.complete, prompts)]
        shared = [service.complete(long + tail) for tail in ("The dog", "The dog")]
        done = subprocess.run([args.promptd, "status", "--json", "--socket", service.http], stdout=subprocess.PIPE, text=True)
        facts = json.loads(done.stdout)["model"] if done.returncode == 0 else {}
        return {"alone": alone, "together": together, "shared": shared, "seconds": took, "facts": facts, "log": service.log()}
    except demo.Failure:
        service.show_logs()
        raise
    finally:
        service.down()
        shutil.rmtree(service.folder, ignore_errors=True)


def compare(args, folder, model, sentences, least, name):
    with open(os.path.join(args.material, "golden", f"{model}.jsonl"), encoding="utf-8") as file:
        prompts = [json.loads(line)["prompt"] for line in file]
    long = SENTENCE * sentences
    prompts = [prompt for prompt in prompts if prompt] + [long]
    cpu, gpu = (answers(args, folder, provider, prompts, long) for provider in ("cpu", "cuda"))
    facts = gpu["facts"]
    same = lambda one, other: sum(a == b for a, b in zip(one, other))
    print(f"{name}: {facts.get('provider')} {facts.get('nodes')}")
    print(f"  one by one as on the CPU: {same(cpu['alone'], gpu['alone'])} of {len(prompts)}; eight at once as one by one: "
          f"{same(gpu['together'], gpu['alone'])}; CPU {cpu['seconds']:.2f} s, GPU {gpu['seconds']:.2f} s")
    print(f"  the same twice: {gpu['shared'][1][1]} tokens from the cache, the same text: {gpu['shared'][0][0] == gpu['shared'][1][0]}")
    for line in gpu["log"].splitlines():
        if "WARN" in line or "ERROR" in line:
            print(f"  {line[:400]}")
    wrong = [(p, a, b) for p, a, b in zip(prompts, cpu["alone"], gpu["alone"]) if a != b]
    for prompt, want, have in wrong[:3]:
        print(f"  {prompt[:40]!r}: CPU {want[:120]!r} GPU {have[:120]!r}")
    (first, _), (second, cached) = gpu["shared"]
    enough = min(same(cpu["alone"], gpu["alone"]), same(gpu["together"], gpu["alone"])) * 100 >= least * len(prompts)
    good = enough and first == second and (cached > 0 or sentences == 1)
    return good and facts.get("provider") == "CUDA"


class Meter(threading.Thread):
    """The most memory that the GPU has in use, in MiB."""

    def __init__(self):
        super().__init__(daemon=True)
        self.most, self.over = 0, threading.Event()

    def run(self):
        query = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
        while not self.over.wait(0.2):
            done = subprocess.run(query, stdout=subprocess.PIPE, text=True)
            if done.returncode == 0:
                self.most = max(self.most, int(done.stdout.split()[0]))


def bench(args, folder):
    name, meter = os.path.basename(folder), Meter()
    meter.start()
    command = [args.promptd, "bench", folder, "--library", args.library, "--provider", "cuda", "--json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    meter.over.set()
    if done.returncode != 0:
        print(f"{name}: promptd bench ended with {done.returncode}")
        return False
    result = {**json.loads(done.stdout), "gpu_memory_mib": meter.most}
    with open(os.path.join(args.work, f"bench-{name}.json"), "w", encoding="utf-8") as file:
        json.dump(result, file, indent=1)
    print(f"{name}: {json.dumps(result)}")
    return True


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--promptd", required=True)
    parser.add_argument("--library", required=True)
    parser.add_argument("--material", required=True)
    parser.add_argument("--work", required=True)
    parser.add_argument("--bench", action="append", default=[], help="a further folder that is measured on the GPU")
    parser.add_argument("--only-bench", action="store_true", help="ask the small models nothing")
    args = parser.parse_args()
    os.makedirs(args.work, exist_ok=True)
    failed = []
    for model, in_half, sentences, least in [] if args.only_bench else MODELS:
        folder, name = os.path.join(args.material, "models", model), model + (", in half precision" if in_half else "")
        if in_half:
            half = os.path.join(args.work, f"{model}-half")
            shutil.rmtree(half, ignore_errors=True)
            subprocess.run([sys.executable, os.path.join(HERE, "half.py"), folder, half], check=True)
            folder = half
        try:
            if not compare(args, folder, model, sentences, least, name):
                failed.append(name)
        except demo.Failure as error:
            print(f"{name}: {error}")
            failed.append(name)
        sys.stdout.flush()
    failed += [folder for folder in args.bench if not bench(args, folder)]
    if failed:
        sys.exit(f"not as on the CPU: {failed}")
    if not args.only_bench:
        print("The GPU says what the CPU says.")


if __name__ == "__main__":
    main()
