#!/usr/bin/env python3
"""The aarch64 promptd under qemu-user, as the processors of boards: its answers are those of x86-64, within what their kernels may differ.

    run.py --target DIR --deb FILE [--material DIR] [--cpu NAME,…] [--only MODEL,…]

Program, libonnxruntime and model are those of the arm64 package (`make test-arm` makes it), unpacked. Needs mosquitto, a promptd for this
machine to compare with, and Linux 6.7 for a binfmt_misc of one's own (or root's, where qemu is registered for aarch64). qemu comes from Debian's backports.

For each processor: the demo model loads, a greedy answer and a schema-bound one come over the line socket, one over MQTT, and the
log probabilities of fixed prompts are compared with those of this machine. With --material, which is no part of this repository, its
golden files are played as well, whole and streamed (tests/golden.py), by models in float32, float16 and int4, and the first step of each of
their prompts is compared with the reference's, which was computed in float64.

Activations of int4 weights are in full precision at accuracy level 0, everywhere. At level 4 they are rounded to 8 bits where the processor
can multiply these: A76 (Raspberry Pi 5, Orin), `max`, which has i8mm too, and x86-64, each in its own way. A72 (Raspberry Pi 4) has no
dot product and computes in full precision there as well. So at level 4 processors differ from each other, and a near tie may fall either way;
what each of them may differ by is a matter of its distance from the reference.
"""
import argparse
import collections
import http.client
import json
import os
import platform
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time

TOP = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.path.insert(0, os.path.join(TOP, "tests"))

from golden import MODELS  # noqa: E402  (the path has to be there first)

CPUS = {"cortex-a72": "Raspberry Pi 4", "cortex-a76": "Raspberry Pi 5", "max": "with i8mm"}
# Largest difference between two processors' log probabilities, of tokens that are probable at all, where both compute in float32: the order
# of sums differs. The mean may be a tenth of it.
FLOAT32_APART = 1e-3
# Distance from the reference: the norm of what log probabilities differ by, relative to the norm of its logits. A rounding in float32
# costs 6e-8, and errors add up over some hundred sums.
FLOAT32 = 1e-5
# float16 keeps 11 bits, so that a rounding costs up to 2^-11. A sum of 172 products (the widest) in halves, twice in a row in each of four
# layers: sqrt(172 * 2 * 4) * 2^-11.
FLOAT16 = 1.8e-2
# Activations of 8 bits: one layer was seen to be off by 8e-3 where the processor multiplies them (a single layer of other weights, without
# promptd). Four layers add up like noise, which doubles it.
ROUNDED = 1.6e-2
MODEL_ERROR = {"stories260k-genai-fp32": FLOAT32, "stories260k-plain-fp32": FLOAT32, "stories260k-genai-int4": FLOAT32,
               "aidreams230k-plain-fp16": FLOAT16, "aidreams230k-genai-int4-acc4": ROUNDED}
# At level 4 as well: nothing is rounded to 8 bits.
WITHOUT_DOT_PRODUCT = "cortex-a72"
PATIENCE = 600
DEMO_PROMPTS = ["The cellar humidity is", "The weather in the garden", "A house with"]
PROMPTS = ["Who are you?", "Is the garage door open?", "Turn on the kitchen light."]
SCHEMA = {"type": "object", "additionalProperties": False, "required": ["device", "action"],
          "properties": {"device": {"type": "string"}, "action": {"enum": ["on", "off"]}}}


def setup(target):
    """qemu and the C libraries that an aarch64 program is started with."""
    cross = os.path.join(target, "cross")
    for what in ("qemu", "sysroot"):
        subprocess.run([os.path.join(TOP, "cross/debian.sh"), what, os.path.join(cross, what)], check=True)
    return os.path.join(cross, "qemu/tree/usr/bin/qemu-aarch64"), os.path.join(cross, "sysroot/tree")


def magic():
    # An ELF file for aarch64, whatever its type: linux/binfmt_misc's words for it.
    head = r"\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00"
    mask = r"\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff"
    return head, mask


def enter(qemu, sysroot, cpu, folder):
    """A prefix for commands: in a namespace of their own, where aarch64 programs are started with this qemu."""
    interpreter = os.path.join(folder, "qemu")
    with open(interpreter, "w") as file:
        file.write(f"#!/bin/sh\nexec {qemu} -cpu {cpu} -L {sysroot} \"$@\"\n")
    os.chmod(interpreter, 0o755)
    head, mask = magic()
    rule = f":promptd-{cpu}:M::{head}:{mask}:{interpreter}:"
    script = ('mount -t binfmt_misc none /proc/sys/fs/binfmt_misc && printf %s "$1" > /proc/sys/fs/binfmt_misc/register '
              '&& shift && exec "$@"')
    return ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script, "enter", rule]


class Service:
    def __init__(self, program, library, model, folder, port, prefix):
        self.folder = folder
        self.lines = os.path.join(folder, "lines.sock")
        config = os.path.join(folder, "promptd.toml")
        with open(config, "w") as file:
            # The package's program finds its library by itself.
            named = f'library = "{library}"\n' if library else ""
            file.write(f'[model]\npath = "{model}"\nslots = 2\n[runtime]\n{named}threads = 1\n'
                       f'[socket]\npath = "{folder}/http.sock"\nlines_path = "{self.lines}"\n[state]\ndir = "{folder}/state"\n'
                       f'[mqtt]\nurl = "mqtt://127.0.0.1:{port}"\nnode = "arm"\n')
        self.log = open(os.path.join(folder, "log"), "w")
        self.process = subprocess.Popen([*prefix, program, "serve", "--config", config], stdin=subprocess.DEVNULL,
                                        stdout=self.log, stderr=self.log)

    def ask(self, request):
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            if self.process.poll() is not None:
                raise SystemExit(f"promptd ended: {open(self.log.name).read()}")
            try:
                with socket.socket(socket.AF_UNIX) as door:
                    door.settimeout(PATIENCE)
                    door.connect(self.lines)
                    door.sendall(json.dumps(request).encode() + b"\n")
                    door.shutdown(socket.SHUT_WR)
                    text = door.makefile().read()
            except OSError:
                time.sleep(0.3)
                continue
            answer = json.loads(text.strip().splitlines()[-1])
            if answer.get("code") in ("model_loading", "busy"):
                time.sleep(0.3)
                continue
            if answer["status"] != "ok":
                raise SystemExit(f"{request} was refused: {answer}\n{open(self.log.name).read()}")
            return answer
        raise SystemExit(f"no answer within {PATIENCE} s: {open(self.log.name).read()}")

    def post(self, target, body):
        connection = http.client.HTTPConnection("localhost", timeout=PATIENCE)
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.settimeout(PATIENCE)
        connection.sock.connect(os.path.join(self.folder, "http.sock"))
        connection.request("POST", target, json.dumps(body), {"Content-Type": "application/json"})
        answer = connection.getresponse()
        text = answer.read()
        connection.close()
        if answer.status != 200:
            raise SystemExit(f"{target} was refused: {text}\n{open(self.log.name).read()}")
        return json.loads(text)

    def stop(self):
        self.process.terminate()
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def examine(service, port):
    texts = [service.ask({"prompt": prompt, "temperature": 0, "max_tokens": 32})["text"] for prompt in PROMPTS]
    golden = [golden_agrees(service, json.loads(line)) for line in open(f"{TOP}/models/demo/golden.jsonl", encoding="utf-8")]
    bound = service.ask({"prompt": PROMPTS[2], "response_format": {"type": "json_schema", "json_schema": {"name": "command", "schema": SCHEMA}}, "temperature": 0})
    over = subprocess.run(["mosquitto_rr", "-V", "5", "-p", str(port), "-q", "1", "-t", "promptd/arm/ask", "-e", "me/reply", "-W",
                           str(PATIENCE), "-m", json.dumps({"prompt": PROMPTS[0], "temperature": 0, "max_tokens": 32})],
                          capture_output=True, text=True, check=True)
    return {"golden": golden.count(True), "of": len(golden), "texts": texts, "bound": bound["text"], "logprobs": unsure(service, DEMO_PROMPTS), "mqtt": json.loads(over.stdout)["text"]}


def unsure(service, prompts):
    """What the model is not sure of shows most: a text that goes on without a question."""
    body = {"model": "default", "temperature": 0, "max_tokens": 48, "logprobs": 5}
    return [logprobs(service.post("/v1/completions", {**body, "prompt": prompt})) for prompt in prompts]


def play(service, material, model):
    """The material's golden files of this model, whole and streamed: whether all came out right, what was said, and how far its first
    steps are from the reference's."""
    # Until the model is there: the player does not wait.
    service.ask({"prompt": "Once", "max_tokens": 1})
    files = [os.path.join(material, "golden", f"{model.split('-')[0]}-{kind}.jsonl") for kind in MODELS[model]]
    done = subprocess.run([sys.executable, f"{TOP}/tests/golden.py", "--material", material, "--socket", os.path.join(service.folder, "http.sock"), *files],
                          capture_output=True, text=True)
    return {"good": done.returncode == 0, "said": done.stdout + done.stderr, "error": error(service, files[0])}


def error(service, golden):
    """Distance of the first steps' five most probable tokens from those of a golden file (its rows are id, logit, log probability)."""
    off = size = 0.0
    for line in open(golden, encoding="utf-8"):
        case = json.loads(line)
        body = {"model": "default", "temperature": 0, "max_tokens": 1, "logprobs": 5, "prompt": case["prompt"]}
        step = service.post("/v1/completions", body)["choices"][0]["logprobs"]["top_logprobs"][0]
        # By rank: of two that are nearly as probable either may be the first.
        for ours, (_, logit, theirs) in zip(sorted(step.values(), reverse=True), case["top5_first"], strict=True):
            off += (ours - theirs) ** 2
            size += logit ** 2
    return (off / size) ** 0.5


def golden_agrees(service, golden):
    """Whether a text of the reference (transformers, computed in full precision) comes out to the letter."""
    chat = golden["kind"] == "chat"
    what = {"messages": golden["messages"]} if chat else {"prompt": golden["prompt"]}
    body = {"model": "default", **what, "temperature": 0, "max_tokens": golden["max_tokens"]}
    choice = service.post("/v1/chat/completions" if chat else "/v1/completions", body)["choices"][0]
    return (choice["message"]["content"] if chat else choice["text"]) == golden["text"]


def logprobs(answer):
    """Of each step: the text that was chosen, and the tokens that are probable at all."""
    told = answer["choices"][0]["logprobs"]
    probable = [{token: value for token, value in step.items() if value > -4} for step in told["top_logprobs"]]
    return list(zip(told["tokens"], probable))


def compare(mine, other):
    """Largest and mean difference and how many there are, of each answer as far as the same tokens were chosen."""
    differences = []
    for here, there in zip(mine["logprobs"], other["logprobs"]):
        for (chosen, ours), (also, theirs) in zip(here, there):
            differences += [abs(ours[token] - theirs[token]) for token in ours.keys() & theirs.keys()]
            if chosen != also:
                break
    return max(differences), sum(differences) / len(differences), len(differences)


def within(mine, other):
    """Whether the log probabilities of two processors are as near as they have to be in float32, and the words for it."""
    worst, mean, count = compare(mine, other)
    good = worst <= FLOAT32_APART and mean <= FLOAT32_APART / 10
    return good, f"log probabilities differ by {worst:.2g} at most, {mean:.2g} on average of {count}"


def exact(model, mine, cpu):
    """Whether a model is as near to the reference as its arithmetic on this processor lets it be, and the words for it."""
    bound = FLOAT32 if MODEL_ERROR[model] == ROUNDED and cpu == WITHOUT_DOT_PRODUCT else MODEL_ERROR[model]
    return mine["error"] <= bound, f"first steps {mine['error']:.1e} from the reference (at most {bound:.1e})"


def counted(said):
    """What golden.py printed, in one line: {'ok': 20, 'near-tie': 1} of each file, added up."""
    total = collections.Counter()
    for counts in re.findall(r"\.jsonl (\{.*\})", said):
        total.update({name: int(count) for name, count in re.findall(r"'([\w-]+)': (\d+)", counts)})
    # What golden.py passes though the player does not: answers that promptd ends in their form.
    return ", ".join(f"{count} {name.replace('FAIL', 'ended in their form')}" for name, count in total.items())


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", default=os.path.join(TOP, "target"))
    parser.add_argument("--deb", required=True, help="the arm64 package")
    parser.add_argument("--material", help="a folder with golden files and their models; without it the demo model's alone are played")
    parser.add_argument("--own", help="promptd for this machine")
    parser.add_argument("--cpu", default=",".join(CPUS))
    parser.add_argument("--only", help="these models: demo, and those of the material")
    args = parser.parse_args()
    target = os.path.abspath(args.target)
    qemu, sysroot = setup(target)
    own = args.own or next((path for kind in ("release", "debug") if os.path.exists(path := f"{target}/{kind}/promptd")), None)
    if own is None:
        sys.exit("run.py: there is no promptd for this machine to compare with; run `cargo build`")
    own_libraries = os.path.join(target, "onnxruntime")
    own_library = os.path.join(own_libraries, next(name for name in os.listdir(own_libraries) if name.startswith("libonnxruntime.so.")))
    version = subprocess.run([qemu, "--version"], capture_output=True, text=True).stdout.split()[2]
    print(f"qemu {version}, {os.path.basename(args.deb)}, {os.path.basename(own_library)}", flush=True)
    broker_program = shutil.which("mosquitto", path=os.environ["PATH"] + ":/usr/sbin") or sys.exit("run.py: mosquitto is missing")
    failed, passed = 0, 0
    with tempfile.TemporaryDirectory(prefix="promptd-arm-", dir="/tmp") as work:
        package = os.path.join(work, "package")
        subprocess.run(["dpkg-deb", "-x", args.deb, package], check=True)
        program, model = os.path.join(package, "usr/bin/promptd"), os.path.join(package, "usr/share/promptd/models/demo")
        port = free_port()
        with open(os.path.join(work, "m.conf"), "w") as file:
            file.write(f"listener {port} 127.0.0.1\nallow_anonymous true\n")
        broker = subprocess.Popen([broker_program, "-c", os.path.join(work, "m.conf")], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        seen, here = {}, platform.machine()
        names = ["demo", *(MODELS if args.material else ())]
        names = [name for name in names if not args.only or name in args.only.split(",")]

        def run(cpu, name, model, what):
            """`what` of a promptd on this processor, and how long it took."""
            folder = os.path.join(work, cpu, name)
            os.makedirs(folder)
            prefix = [] if cpu == here else enter(qemu, sysroot, cpu, folder)
            begun = time.monotonic()
            # The package's program finds its library by itself.
            service = Service(*((program, None) if prefix else (own, own_library)), model, folder, port, prefix)
            try:
                seen[cpu, name] = what(service)
            finally:
                service.stop()
            return seen[cpu, name], time.monotonic() - begun

        def tell(cpu, name, good, words, took):
            nonlocal failed, passed
            failed, passed = failed + (not good), passed + good
            print(f"{cpu:12} {CPUS.get(cpu, ''):15} {name:30} {'ok' if good else 'FAILED'}: {words} ({took:.0f} s)", flush=True)

        try:
            for cpu in [here, *args.cpu.split(",")]:
                if "demo" in names:
                    mine, took = run(cpu, "demo", f"{TOP}/models/demo" if cpu == here else model, lambda service: examine(service, port))
                if "demo" in names and cpu != here:
                    theirs = seen[here, "demo"]
                    near, words = within(theirs, mine)
                    same = mine["texts"] == theirs["texts"]
                    # It computes in float32.
                    good = (near and same and mine["golden"] == mine["of"] and json.loads(mine["bound"])["action"] == "on"
                            and mine["mqtt"] == mine["texts"][0])
                    tell(cpu, "demo", good, f"{mine['golden']} of {mine['of']} golden texts; {words}; {'the same texts' if same else mine['texts']}; "
                         f"{mine['bound']}; MQTT {mine['mqtt']!r}", took)
                for name in [name for name in names if name != "demo"]:
                    mine, took = run(cpu, name, os.path.join(args.material, "models", name), lambda service: play(service, args.material, name))
                    near, words = exact(name, mine, cpu)
                    if cpu == here and not mine["good"]:
                        sys.exit(f"run.py: not even this machine answers as the reference of {name}: {mine['said']}")
                    tell(cpu, name, near and mine["good"], f"{counted(mine['said']) if mine['good'] else mine['said']}; {words}", took)
        finally:
            broker.terminate()
            broker.wait()
    print(f"{passed} passed, {failed} failed")
    sys.exit(1 if failed else 0)


main()
