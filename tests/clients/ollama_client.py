"""Python's ollama over the Unix socket."""
import json
import sys

import httpx
import ollama

client = ollama.Client(host="http://localhost", transport=httpx.HTTPTransport(uds=sys.argv[1]))
model = client.list().models[0].model
assert client.show(model).capabilities
ask = [{"role": "user", "content": "Turn on the kitchen light."}]
whole = client.chat(model=model, messages=ask, options={"num_predict": 60})
assert whole.message.content and whole.done_reason == "stop", whole
streamed = "".join(piece.message.content for piece in client.chat(model=model, messages=ask, stream=True))
assert streamed == whole.message.content, (streamed, whole)
schema = {"type": "object", "additionalProperties": False, "required": ["on"], "properties": {"on": {"type": "boolean"}}}
assert set(json.loads(client.chat(model=model, messages=ask, format=schema).message.content)) == {"on"}


def lamp(on: bool) -> str:
    """Switch the lamp.

    Args:
        on: whether it is to be on
    """
    return str(on)


assert client.chat(model=model, messages=ask, tools=[lamp], options={"num_predict": 60}).done
assert client.generate(model=model, prompt="Who are you?").response
assert client.ps().models
try:
    client.chat(model="other", messages=ask)
except ollama.ResponseError as error:
    assert error.status_code == 404, error
else:
    raise SystemExit("another model was found")
print("  chat whole and streamed, schema, tools, generate, list, show, ps")
