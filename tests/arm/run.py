#!/usr/bin/env python3
"""The aarch64 promptd under qemu-user, as the processors of boards: its answers are those of x86-64, within what their kernels may differ.

    run.py --target DIR --deb FILE [--cpu NAME,…]

Program, libonnxruntime and model are those of the arm64 package (`make test-arm` makes it), unpacked. Needs mosquitto, a promptd for this
machine to compare with, and Linux 6.7 for a binfmt_misc of one's own (or root's, where qemu is registered for aarch64). qemu comes from Debian's backports.

For each processor: the demo model loads, a greedy answer and a schema-bound one come over the line socket, one over MQTT, and the
log probabilities of a fixed prompt are compared with those of this machine. A72 (Raspberry Pi 4) has no dot product and computes
int4 weights in full precision; A76 (Raspberry Pi 5, Orin) has it; `max` has i8mm too. The last two round activations to 8 bits, as
x86-64 does, each in its own way: their values differ by 1e-2, and the first's from theirs by as much.
"""
import argparse
import http.client
import json
import os
import platform
import shutil
import socket
import subprocess
import sys
import tempfile
import time

TOP = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
CPUS = {"cortex-a72": "Raspberry Pi 4", "cortex-a76": "Raspberry Pi 5", "max": "with i8mm"}
# Largest difference of a log probability among tokens that are probable at all; the mean may be a tenth of it.
TOLERANCE = 0.15
PATIENCE = 600
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
            raise SystemExit(f"{target} was refused: {text}")
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
    # What the model is not sure of shows most: a text that goes on without a question.
    unsure = [service.post("/v1/completions", {"model": "default", "prompt": prompt, "temperature": 0, "max_tokens": 48, "logprobs": 5})
              for prompt in ("The cellar humidity is", "The weather in the garden", "A house with")]
    over = subprocess.run(["mosquitto_rr", "-V", "5", "-p", str(port), "-q", "1", "-t", "promptd/arm/ask", "-e", "me/reply", "-W",
                           str(PATIENCE), "-m", json.dumps({"prompt": PROMPTS[0], "temperature": 0, "max_tokens": 32})],
                          capture_output=True, text=True, check=True)
    return {"golden": golden.count(True), "of": len(golden), "texts": texts, "bound": bound["text"], "logprobs": [step for answer in unsure for step in logprobs(answer)], "mqtt": json.loads(over.stdout)["text"]}


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
    """Largest and mean difference, as far as the same tokens were chosen."""
    differences = []
    for (chosen, here), (also, there) in zip(mine["logprobs"], other["logprobs"]):
        if chosen == also:
            differences += [abs(here[token] - there[token]) for token in here.keys() & there.keys()]
    return max(differences), sum(differences) / len(differences), len(differences)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", default=os.path.join(TOP, "target"))
    parser.add_argument("--deb", required=True, help="the arm64 package")
    parser.add_argument("--own", help="promptd for this machine")
    parser.add_argument("--cpu", default=",".join(CPUS))
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
        seen = {}
        try:
            for cpu in [platform.machine(), *args.cpu.split(",")]:
                folder = os.path.join(work, cpu)
                os.mkdir(folder)
                prefix = [] if cpu == platform.machine() else enter(qemu, sysroot, cpu, folder)
                here = (own, own_library, f"{TOP}/models/demo") if not prefix else (program, None, model)
                begun = time.monotonic()
                service = Service(*here, folder, port, prefix)
                try:
                    seen[cpu] = examine(service, port)
                finally:
                    service.stop()
                if not prefix:
                    continue
                worst, mean, count = compare(seen[platform.machine()], seen[cpu])
                same = seen[cpu]["texts"] == seen[platform.machine()]["texts"]
                # A near tie may fall the other way where activations are rounded.
                missed = seen[cpu]["of"] - seen[cpu]["golden"]
                good = (missed <= (0 if cpu == "cortex-a72" else 1) and worst <= TOLERANCE and mean <= TOLERANCE / 10 and same and json.loads(seen[cpu]["bound"])["action"] == "on"
                        and seen[cpu]["mqtt"] == seen[cpu]["texts"][0])
                failed, passed = failed + (not good), passed + good
                print(f"{cpu:12} {CPUS.get(cpu, ''):15} {'ok' if good else 'FAILED'}: {seen[cpu]['golden']} of {seen[cpu]['of']} golden texts; log probabilities differ by {worst:.2g} at most, "
                      f"{mean:.2g} on average of {count}; {'the same texts' if same else seen[cpu]['texts']}; {seen[cpu]['bound']}; "
                      f"MQTT {seen[cpu]['mqtt']!r} ({time.monotonic() - begun:.0f} s)", flush=True)
        finally:
            broker.terminate()
            broker.wait()
    print(f"{passed} passed, {failed} failed")
    sys.exit(1 if failed else 0)


main()
