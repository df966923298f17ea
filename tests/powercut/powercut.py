#!/usr/bin/env python3
"""Power cuts while promptd works: whatever moment the current fails, what was acknowledged ends in exactly one final message.

    powercut.py --program TARGET/…/load-… [--cuts 200] [--seed N] [--histories 4] [--lies N]

Prompts come over MQTT, where promptd's acknowledgement (PUBACK) is the promise, and over HTTP with an Idempotency-Key, where it is the
beginning of the response; after the cut their askers come again with the key. With `--lies` the disk says of its last N flushes that they
are done and does nothing: promises are broken then, and the run fails unless that is seen. It shows that the judge sees.

The program is the test `load`: promptd as it is shipped, with an engine of a known pace. Its record lies on an ext4 file system whose
device is kept write by write (disk.py). After a while of work the disk is cut at many moments of its history: up to a write, or with
any of the blocks that were not flushed. Each such disk is mounted (the journal is replayed), promptd is started on it, and what it says is
judged against what was seen before the cut. Needs root, for loop devices and mounts.
"""
import argparse
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time

from broker import Broker
from disk import FLUSH, Disk

PATIENCE = 60


class Service:
    def __init__(self, program, place, state, port):
        self.http = os.path.join(place, "http.sock")
        config = os.path.join(place, "promptd.toml")
        os.makedirs(os.path.join(place, "model"), exist_ok=True)
        with open(config, "w", encoding="utf-8") as file:
            file.write(
                f'[model]\npath = "{place}/model"\nslots = 2\n[runtime]\nlibrary = "{place}/none.so"\n[socket]\npath = "{self.http}"\n'
                f'[state]\ndir = "{state}"\n[mqtt]\nurl = "mqtt://127.0.0.1:{port}"\nnode = "n"\n'
            )
        self.log = open(os.path.join(place, "log"), "ab")
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PROMPTD__")}
        self.process = subprocess.Popen([program, "serve", "--config", config], stderr=self.log, env=environment)

    def health(self):
        try:
            with socket.socket(socket.AF_UNIX) as door:
                door.settimeout(PATIENCE)
                door.connect(self.http)
                door.sendall(b"GET /health/ready HTTP/1.1\r\nHost: l\r\nConnection: close\r\n\r\n")
                answer = b"".join(iter(lambda: door.recv(65536), b""))
            return json.loads(answer.split(b"\r\n\r\n", 1)[1])
        except (OSError, ValueError, IndexError):
            return None

    def until(self, what, is_so):
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            health = self.health()
            if health and is_so(health):
                return health
            if self.process.poll() is not None:
                break
            time.sleep(0.01)
        raise AssertionError(f"{what}: {self.health()}, status {self.process.poll()}")

    def end(self):
        """kill -9, and the engine with it."""
        if self.process.poll() is None:
            children = subprocess.run(["pgrep", "-P", str(self.process.pid)], capture_output=True, text=True).stdout.split()
            for pid in [self.process.pid, *map(int, children)]:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    pass
        self.process.wait()
        self.log.close()


def idle(health):
    record = health.get("record", {})
    return health["state"] == "ready" and not record.get("prompts") and not record.get("undelivered") and not record.get("waiting")


def ask(path, key, prompt, begun=None):
    """Asks over HTTP, streamed; `begun` is told when the response has begun. Gives the text, or None where there is none."""
    body = json.dumps({"prompt": prompt["prompt"], "max_tokens": prompt["max_tokens"], "stream": True}).encode()
    with socket.socket(socket.AF_UNIX) as door:
        door.settimeout(PATIENCE)
        door.connect(path)
        head = f"POST /v1/completions HTTP/1.1\r\nHost: l\r\nConnection: close\r\nIdempotency-Key: {key}\r\nContent-Length: {len(body)}\r\n\r\n"
        door.sendall(head.encode() + body)
        answer = door.recv(65536)
        if not answer.startswith(b"HTTP/1.1 200"):
            return None
        if begun:
            begun()
        while part := door.recv(65536):
            answer += part
    events = [line[6:] for line in answer.split(b"\r\n\r\n", 1)[1].splitlines() if line.startswith(b"data: ")]
    if not events or events[-1] != b"[DONE]":
        return None
    chunks = [json.loads(event) for event in events[:-1]]
    return "".join(choice["text"] for chunk in chunks for choice in chunk["choices"])


class Keyed:
    """Prompts over HTTP: when each was promised, and what was answered."""

    def __init__(self):
        self.prompts, self.promised, self.texts, self.threads = {}, {}, {}, []

    def ask(self, http, name, prompt, now):
        self.prompts[name] = prompt

        def work():
            self.texts[name] = ask(http, name, prompt, lambda: self.promised.setdefault(name, now()))

        thread = threading.Thread(target=work)
        thread.start()
        self.threads.append(thread)


def live(program, place, seed, prompts):
    """A while of work on a disk; the disk, when prompts were acknowledged, and the answers with their moments."""
    chance = random.Random(seed)
    disk = Disk(place, 24 << 20)
    broker, keyed = Broker(disk.now), Keyed()
    service = None
    try:
        service = Service(program, place, os.path.join(disk.mount_point, "state"), broker.port)
        service.until("promptd to be ready", lambda health: health["state"] == "ready")
        assert broker.ready.wait(PATIENCE), "promptd does not listen"
        disk.begin()
        for number in range(1, prompts + 1):
            prompt = {"id": f"q{number}", "prompt": "x" * chance.choice([10, 100, 2000]), "max_tokens": chance.randint(1, 25)}
            if number % 4 == 0:
                keyed.ask(service.http, prompt["id"], prompt, disk.now)
            else:
                broker.ask(number, prompt)
            time.sleep(chance.choice([0, 0.005, 0.03, 0.1, 0.2]))
        for thread in keyed.threads:
            thread.join(PATIENCE)
        service.until("all to be answered", idle)
        time.sleep(2.5)  # the last rows are made safe within two seconds
        service.end()
        over_mqtt = prompts - prompts // 4
        assert len(broker.acknowledged) == over_mqtt, "not everything was acknowledged"
        assert None not in keyed.texts.values() and len(keyed.texts) == prompts // 4, keyed.texts
        texts = {}
        for _, answer in broker.answers:
            assert answer["status"] == "ok", answer
            texts[answer["id"]] = answer["text"]
        assert len(broker.answers) == over_mqtt == len(texts), "not everything was answered once"
        broker.keyed = keyed
        return disk, broker, texts
    except BaseException:
        if service:
            service.end()
        disk.close()
        raise


def judge(program, place, cut_at, image, seen, texts):
    """Starts promptd on what a cut has left. Gives what is wrong, and how often an answer came twice."""
    os.makedirs(place)
    path, mounted = os.path.join(place, "image"), os.path.join(place, "mnt")
    os.mkdir(mounted)
    with open(path, "wb") as file:
        file.write(image)
    subprocess.run(["mount", "-o", "loop", path, mounted], check=True)
    broker, service = Broker(lambda: 0), None
    try:
        service = Service(program, place, os.path.join(mounted, "state"), broker.port)
        try:
            health = service.until("all to be answered", idle)
        except AssertionError as error:
            return [str(error)], 0
        assert broker.ready.wait(PATIENCE)
        # An answer may be on its way through the socket.
        time.sleep(0.1)
        wrong, twice = [], 0
        if health["record"].get("lost"):
            wrong.append(f"{health['record']['lost']} rows were lost")
        after = {}
        for _, answer in broker.answers:
            after.setdefault(answer["id"], []).append(answer)
        for name, answers in after.items():
            if name not in texts:
                wrong.append(f"{name}: an answer to nobody")
            elif len(answers) > 1:
                wrong.append(f"{name}: {len(answers)} answers")
            elif answers[0]["status"] != "ok" or answers[0]["text"] != texts[name]:
                wrong.append(f"{name}: another answer: {answers[0]}")
        for name, acknowledged in seen.acknowledged.items():
            before = any(at <= cut_at and answer["id"] == name for at, answer in seen.answers)
            if acknowledged <= cut_at and not before and name not in after:
                wrong.append(f"{name}: acknowledged, and never answered")
            twice += before and name in after
        for name, promised in seen.keyed.promised.items():
            if promised <= cut_at:
                again = ask(service.http, name, seen.keyed.prompts[name])
                if again != seen.keyed.texts[name]:
                    wrong.append(f"{name}: another answer under its key: {again!r}, not {seen.keyed.texts[name]!r}")
        return wrong, twice
    finally:
        if service:
            service.end()
        broker.close()
        subprocess.run(["umount", mounted], check=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--program", required=True)
    parser.add_argument("--cuts", type=int, default=200)
    parser.add_argument("--histories", type=int, default=4)
    parser.add_argument("--prompts", type=int, default=40)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--lies", type=int, default=0)
    args = parser.parse_args()
    if os.geteuid() != 0:
        sys.exit("powercut: file systems can be mounted by root only")
    program, failed, twice, most, in_work, begun = os.path.abspath(args.program), 0, 0, 0, 0, time.monotonic()
    base = tempfile.mkdtemp(prefix="promptd-cut-", dir="/tmp")
    for history in range(args.histories):
        seed = args.seed * 1000 + history
        place = os.path.join(base, str(seed))
        os.mkdir(place)
        disk, seen, texts = live(program, place, seed, args.prompts)
        writes = sum(entry is not FLUSH for entry in disk.log)
        print(f"history {seed}: {args.prompts} prompts, {writes} writes, {len(disk.log) - writes} flushes", flush=True)
        disk.close()
        seen.close()
        chance = random.Random(seed)
        for cut in range(args.cuts // args.histories):
            at = chance.randint(0, len(disk.log))
            manner = chance.choice(["prefix", "any", "few"])
            share = {"prefix": None, "any": 0.5, "few": 0.1}[manner]
            image = disk.cut(at, share and (lambda: chance.random() < share), args.lies)
            folder = os.path.join(place, f"cut{cut}")
            try:
                wrong, again = judge(program, folder, at, image, seen, texts)
            except subprocess.CalledProcessError:
                # A file system cannot stand on any lie, which says nothing of promptd.
                if not args.lies:
                    raise
                continue
            twice += again
            most = max(most, again)
            in_work += any(
                acknowledged <= at and not any(when <= at and answer["id"] == name for when, answer in seen.answers)
                for name, acknowledged in seen.acknowledged.items()
            )
            if wrong and args.lies:
                failed += 1
                shutil.rmtree(folder)
            elif wrong:
                failed += 1
                print(f"history {seed}, cut {cut} ({manner}, at {at} of {len(disk.log)}):", *wrong, sep="\n  ", flush=True)
                print(f"  its folder is left: {folder}", flush=True)
            else:
                shutil.rmtree(folder)
    seconds = time.monotonic() - begun
    cuts = args.cuts // args.histories * args.histories
    print(f"{cuts} power cuts in {seconds:.0f} s, {in_work} with acknowledged prompts in work: {failed} failed, {twice} answers came a second time, "
          f"at most {most} of them after one cut")
    if args.lies and not failed:
        sys.exit("powercut: a disk that lies was not noticed")
    if failed and not args.lies:
        sys.exit(1)
    shutil.rmtree(base, ignore_errors=True)


if __name__ == "__main__":
    main()
