"""curl over the Unix socket: a chat whole and streamed, a refusal with its status, health; and socat on the line socket."""
import json
import shutil
import subprocess
import sys

SOCKET, LINES = sys.argv[1], sys.argv[2]
ASK = {"messages": [{"role": "user", "content": "Turn on the kitchen light."}], "max_tokens": 60}


def curl(path, body=None):
    command = ["curl", "-sSN", "--max-time", "120", "--unix-socket", SOCKET, "-w", "\n%{http_code}", f"http://localhost{path}"]
    if body is not None:
        command += ["-H", "Content-Type: application/json", "-d", json.dumps(body)]
    text, status = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.rsplit("\n", 1)
    return int(status), text


status, text = curl("/health/ready")
assert (status, json.loads(text)["state"]) == (200, "ready"), text
status, text = curl("/v1/chat/completions", ASK)
whole = json.loads(text)["choices"][0]["message"]["content"]
assert status == 200 and whole, text
status, text = curl("/v1/chat/completions", {**ASK, "stream": True})
lines = [line.removeprefix("data: ") for line in text.split("\n") if line.startswith("data: ")]
assert status == 200 and lines.pop() == "[DONE]", text
streamed = "".join(json.loads(line)["choices"][0]["delta"].get("content") or "" for line in lines)
assert streamed == whole, (streamed, whole)
status, text = curl("/v1/chat/completions", {**ASK, "temperature": "hot"})
assert (status, json.loads(text)["error"]["param"]) == (400, "temperature"), text
print("  chat whole and streamed: the same", len(whole), "characters; a refusal")

if shutil.which("socat"):
    done = subprocess.run(["socat", "-t", "120", "-", f"UNIX-CONNECT:{LINES}"], input='{"prompt":"hi"}\n', check=True,
                          stdout=subprocess.PIPE, text=True)
    answer = json.loads(done.stdout)
    assert answer["status"] == "ok" and answer["text"], answer
    print("  socat, a line:", answer["text"])
else:
    print("  there is no socat, not run")
