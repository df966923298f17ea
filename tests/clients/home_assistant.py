"""What Home Assistant's llama_cpp integration sends over TCP, replayed: the list of models, its set-up probe (a tool and three
tokens, whole and streamed), a turn of conversation with tools and the house's states, and a task held to a schema."""
import http.client
import json
import sys

ADDRESS, KEY = sys.argv[1], sys.argv[2]
TOOL = {"type": "function", "function": {"name": "HassTurnOn", "description": "Turns on a device or entity",
        "parameters": {"type": "object", "properties": {"name": {"type": "string"}, "area": {"type": "string"},
                       "domain": {"type": "array", "items": {"type": "string"}}}, "required": []}}}


def call(method, path, body=None, key=KEY):
    connection = http.client.HTTPConnection(ADDRESS, timeout=120)
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
    connection.request(method, path, body and json.dumps(body), headers)
    answer = connection.getresponse()
    return answer.status, answer.read().decode()


def chunks(text):
    lines = [line[6:] for line in text.split("\n") if line.startswith("data: ")]
    assert lines[-1] == "[DONE]", lines[-1]
    return [json.loads(line) for line in lines[:-1]]


status, text = call("GET", "/v1/models", key="x" * 20)
assert status == 401, (status, text)
status, text = call("GET", "/v1/models")
model = json.loads(text)["data"][0]["id"]
probe = {"model": model, "messages": [{"role": "user", "content": "ping"}], "tools": [TOOL], "max_tokens": 3}
status, text = call("POST", "/v1/chat/completions", probe)
choice = json.loads(text)["choices"][0]
assert status == 200 and choice["finish_reason"] in ("stop", "length", "tool_calls"), text
status, text = call("POST", "/v1/chat/completions", {**probe, "stream": True})
assert status == 200 and any(c["choices"] and c["choices"][0]["finish_reason"] for c in chunks(text)), text
print("  models, and the probe whole and streamed:", choice["finish_reason"])

system = "You are a voice assistant for Home Assistant.\nStatic Context: devices:\n- names: Kitchen Light\n  domain: light"
turn = {"model": model, "user": "01JCONVERSATION", "top_p": 1.0, "temperature": 1.0, "max_tokens": 150, "seed": 1, "stream": True,
        "stream_options": {"include_usage": True}, "tools": [TOOL], "tool_choice": "required", "parallel_tool_calls": False,
        "messages": [{"role": "system", "content": system}, {"role": "user", "content": "turn on the kitchen light"}]}
status, text = call("POST", "/v1/chat/completions", turn)
assert status == 200, text
called = [c["choices"][0]["delta"].get("tool_calls") for c in chunks(text) if c["choices"]]
pieces = [piece for pieces in called if pieces for piece in pieces]
name = "".join(piece["function"].get("name", "") for piece in pieces)
arguments = "".join(piece["function"].get("arguments", "") for piece in pieces)
assert name == "HassTurnOn" and isinstance(json.loads(arguments), dict), pieces
result = {"role": "tool", "tool_call_id": pieces[0]["id"], "content": '{"success":true}'}
turn["messages"] += [{"role": "assistant", "content": None, "tool_calls": [
    {"id": pieces[0]["id"], "type": "function", "function": {"name": name, "arguments": arguments}}]}, result]
status, text = call("POST", "/v1/chat/completions", {**turn, "tool_choice": "auto"})
assert status == 200 and chunks(text)[-1]["usage"]["total_tokens"] > 0, text
print("  a turn of conversation:", name, arguments)

form = {"type": "json_schema", "json_schema": {"name": "task", "strict": True, "schema": {
    "type": "object", "properties": {"state": {"type": "string", "maxLength": 20}}, "required": ["state"], "additionalProperties": False}}}
task = {"model": model, "messages": [{"role": "user", "content": "Is the door open?"}], "response_format": form, "max_tokens": 60}
status, text = call("POST", "/v1/chat/completions", task)
assert status == 200 and set(json.loads(json.loads(text)["choices"][0]["message"]["content"])) == {"state"}, text
print("  a task held to a schema")
