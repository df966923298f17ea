#!/usr/bin/env python3
"""The demonstration behind `make demo`: a broker, promptd and the demo model, asked by every door; ends non-zero if an answer is missing or wrong.

Standard library only. Everything it starts runs on a free port and in a folder of its own, and is stopped at the end.
"""
import argparse
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
MODEL = os.path.join(ROOT, "models", "demo")
# What the model is told about the house. It reads its answers from here: change a line and the answer changes.
HOUSE = "greenhouse temperature: 21.5 °C\ngarage door: open\nkitchen light: off\nbedroom humidity: 48 %"
HAUS = "温室温度：21.5 °C\n车库门：开着\n厨房灯：关着"
# Loading the demo model takes under a second; a busy single-board computer is given a minute.
PATIENCE_SECONDS = 60
COLOUR = sys.stdout.isatty() and "NO_COLOR" not in os.environ


def paint(code, text):
    return f"\033[{code}m{text}\033[0m" if COLOUR else text


def tool(name):
    """Debian puts mosquitto into /usr/sbin, which is not on everybody's PATH."""
    path = shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/local/sbin:/usr/local/bin")
    if not path:
        sys.exit(f"demo: `{name}` is not installed; `make demo` installs it where apt-get is there")
    return path


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class UnixConnection(http.client.HTTPConnection):
    def __init__(self, path):
        super().__init__("localhost", timeout=PATIENCE_SECONDS)
        self.unix_path = path

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(PATIENCE_SECONDS)
        self.sock.connect(self.unix_path)


def get(path, target):
    connection = UnixConnection(path)
    try:
        connection.request("GET", target)
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())
    finally:
        connection.close()


class House:
    """The broker and promptd, for as long as the demonstration lasts."""

    def __init__(self, promptd, folder):
        self.promptd, self.folder, self.port = promptd, folder, free_port()
        self.http = os.path.join(folder, "promptd.sock")
        self.children, self.logs, self.asked = [], [], 0

    def write_config(self):
        with open(os.path.join(MODEL, "command.schema.json"), encoding="utf-8") as file:
            schema = file.read().strip()
        text = f"""\
[model]
path = {json.dumps(MODEL)}

[mqtt]
url = "mqtt://127.0.0.1:{self.port}"
node = "demo"

[socket]
path = {json.dumps(self.http)}
lines_path = {json.dumps(os.path.join(self.folder, "lines.sock"))}

[state]
dir = {json.dumps(os.path.join(self.folder, "state"))}

[profiles.house]
system = {json.dumps(HOUSE, ensure_ascii=False)}

[profiles.commands]
schema = '''
{schema}
'''
"""
        path = os.path.join(self.folder, "promptd.toml")
        with open(path, "w", encoding="utf-8") as file:
            file.write(text)
        return path

    def start(self, name, command):
        log = os.path.join(self.folder, f"{name}.log")
        self.logs.append((name, log))
        with open(log, "wb") as file:
            # Variables of the user's own promptd must not reach into the demonstration.
            environment = {k: v for k, v in os.environ.items() if not k.startswith("PROMPTD__")}
            child = subprocess.Popen(command, stdout=file, stderr=file, stdin=subprocess.DEVNULL, env=environment)
        self.children.append((name, child))
        return child

    def up(self):
        broker_config = os.path.join(self.folder, "mosquitto.conf")
        with open(broker_config, "w", encoding="ascii") as file:
            file.write(f"listener {self.port} 127.0.0.1\nallow_anonymous true\npersistence false\n")
        self.start("mosquitto", [tool("mosquitto"), "-c", broker_config])
        began = time.monotonic()
        self.wait_until_ready(self.start("promptd", [self.promptd, "serve", "--config", self.write_config()]))
        # `online` is retained and published once promptd has subscribed: from here on no prompt goes unheard.
        online = run([tool("mosquitto_sub"), "-p", str(self.port), "-C", "1", "-W", str(PATIENCE_SECONDS), "-t", "promptd/demo/availability"])
        if online.strip() != "online":
            raise Failure(f"promptd says {online.strip()!r} on promptd/demo/availability")
        return time.monotonic() - began

    def wait_until_ready(self, service):
        deadline = time.monotonic() + PATIENCE_SECONDS
        while time.monotonic() < deadline:
            if service.poll() is not None:
                raise Failure(f"promptd ended with status {service.returncode} before it was ready")
            try:
                if get(self.http, "/health/ready")[0] == 200:
                    return
            except (OSError, ValueError, http.client.HTTPException):
                pass
            time.sleep(0.02)
        raise Failure(f"promptd was not ready after {PATIENCE_SECONDS} s")

    def down(self):
        """Ends what this started, promptd before its broker, so that it can say goodbye."""
        clean = True
        for name, child in reversed(self.children):
            if child.poll() is None:
                child.send_signal(signal.SIGTERM)
            try:
                status = child.wait(PATIENCE_SECONDS)
            except subprocess.TimeoutExpired:
                child.kill()
                status = child.wait()
            if name == "promptd" and status != 0:
                print(paint("31", f"promptd ended with status {status}"))
                clean = False
        return clean

    def show_logs(self):
        for name, log in self.logs:
            with open(log, encoding="utf-8", errors="replace") as file:
                lines = file.read().splitlines()[-25:]
            print(paint("2", f"\n--- the last lines of {name}'s log"))
            print("\n".join(lines))


class Failure(Exception):
    """The demonstration cannot go on, or an answer was wrong."""


def run(command, stdin=None):
    done = subprocess.run(command, capture_output=True, input=stdin, timeout=PATIENCE_SECONDS)
    if done.returncode != 0:
        raise Failure(f"`{os.path.basename(command[0])}` ended with status {done.returncode}: {done.stderr.decode(errors='replace').strip()}")
    return done.stdout.decode("utf-8")


# Each door: asks, and returns (text, tokens per second or None, time to first token in ms or None).

def by_response_topic(house, profile, question):
    out = run([tool("mosquitto_rr"), "-p", str(house.port), "-V", "5", "-q", "1", "-W", str(PATIENCE_SECONDS),
               "-t", f"promptd/demo/ask/{profile}", "-e", "demo/reply", "-m", question])
    return from_answer(json.loads(out))


def by_mqtt_311(house, profile, question):
    # MQTT 3.1.1 has no response topic: the answer goes to a topic that the request's id names. A fresh id each time, for
    # a request that comes twice under one id gets the answer of the first.
    house.asked += 1
    request = {"id": f"demo-{house.asked}", "prompt": question, "profile": profile}
    out = run([tool("mosquitto_rr"), "-p", str(house.port), "-V", "311", "-q", "1", "-W", str(PATIENCE_SECONDS),
               "-t", "promptd/demo/ask", "-e", f"promptd/demo/answer/{request['id']}", "-m", json.dumps(request)])
    return from_answer(json.loads(out))


def from_answer(answer):
    if answer.get("status") != "ok":
        raise Failure(f"{answer.get('code')}: {answer.get('message')}")
    return answer["text"], answer.get("tps"), answer["ms"]["queue"] + answer["ms"]["prefill"]


def by_curl(house, system, question):
    messages = [{"role": "system", "content": system}, {"role": "user", "content": question}]
    body = {"messages": messages, "stream": True, "stream_options": {"include_usage": True}}
    began = time.monotonic()
    curl = subprocess.Popen([tool("curl"), "-sN", "--max-time", str(PATIENCE_SECONDS), "--unix-socket", house.http,
                             "http://localhost/v1/chat/completions", "-H", "Content-Type: application/json", "-d", json.dumps(body)], stdout=subprocess.PIPE, bufsize=0)
    text, first, speed = "", None, None
    for line in iter(curl.stdout.readline, b""):
        if not line.startswith(b"data: ") or b"[DONE]" in line:
            continue
        chunk = json.loads(line[6:])
        speed = chunk.get("promptd", {}).get("tps", speed)
        for choice in chunk.get("choices", []):
            piece = choice["delta"].get("content") or ""
            if piece and first is None:
                first = (time.monotonic() - began) * 1000
            text += piece
            if COLOUR and piece:
                print(paint("32", piece), end="", flush=True)
    if curl.wait() != 0 or first is None:
        raise Failure(f"curl ended with status {curl.returncode} and the text {text!r}")
    if COLOUR:
        print("\r\033[K", end="")
    return text, speed, first


def by_promptd_ask(house, system, question):
    out = run([house.promptd, "ask", "--socket", house.http, "--json", "--system", system, question])
    answer = json.loads(out)
    timing = answer.get("promptd", {})
    ms = timing.get("ms", {})
    return answer["choices"][0]["message"]["content"], timing.get("tps"), ms.get("queue", 0) + ms.get("prefill", 0)


SCENES = [
    ("MQTT 5, mosquitto_rr, plain text", by_response_topic, "house", "How warm is it in the greenhouse?", "The greenhouse is at 21.5 °C."),
    ("MQTT 5, what the readings do not tell", by_response_topic, "house", "How warm is it in the cellar?", "I do not know."),
    ("MQTT 3.1.1, JSON, held to a schema", by_mqtt_311, "commands", "Turn on the kitchen light.", '{"device":"kitchen light","action":"on"}'),
    ("MQTT 3.1.1, JSON, held to a schema", by_mqtt_311, "commands", "把卧室灯调暗到40%。", '{"device":"卧室灯","action":"dim","value":40}'),
    ("Unix socket, curl, streamed chat", by_curl, HOUSE, "Is the garage door open?", "The garage door is open."),
    ("Unix socket, promptd ask, Chinese", by_promptd_ask, HAUS, "温室的温度是多少？", "温室的温度是21.5 °C。"),
    ("Unix socket, promptd ask", by_promptd_ask, HOUSE, "Who are you?", "I am the promptd demo model, a small assistant for homes and machines."),
]


def play(house):
    wrong = 0
    for title, door, context, question, expected in SCENES:
        print(f"\n{paint('1', title)}")
        print(f"  {paint('36', 'Q')}  {question}")
        try:
            text, speed, first = door(house, context, question)
        except (Failure, ValueError, KeyError, subprocess.TimeoutExpired) as error:
            print(f"  {paint('31', '✗')}  {type(error).__name__}: {error}")
            wrong += 1
            continue
        right = text == expected
        figures = [f"first token after {first:.0f} ms" if first is not None else "", f"{speed:.0f} tokens/s" if speed else ""]
        mark = paint("32", "A") if right else paint("31", "✗")
        print(f"  {mark}  {text}   {paint('2', ', '.join(figure for figure in figures if figure))}")
        if not right:
            print(f"     {paint('31', 'expected')} {expected}")
            wrong += 1
    return wrong


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--promptd", default=os.path.join(ROOT, "target", "release", "promptd"))
    args = parser.parse_args()
    # /tmp and not TMPDIR: a socket's path may have no more than 107 bytes.
    folder = tempfile.mkdtemp(prefix="promptd-demo-", dir="/tmp")
    house, wrong = House(os.path.abspath(args.promptd), folder), 1
    try:
        seconds = house.up()
        print(f"A broker on port {house.port}, promptd and its model: ready after {seconds:.1f} s. The model is told:")
        for line in HOUSE.splitlines():
            print(paint("2", f"  │ {line}"))
        wrong = play(house)
    except Failure as error:
        print(paint("31", f"demo: {error}"))
    finally:
        if not house.down():
            wrong += 1
        if wrong:
            house.show_logs()
        shutil.rmtree(folder, ignore_errors=True)
    if wrong:
        sys.exit(1)
    print(f"\n{paint('32', 'All answers are right.')} Everything that was started is stopped again.")


if __name__ == "__main__":
    main()
