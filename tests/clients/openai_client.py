"""Python's openai over the Unix socket: sync, async, streamed, tools, schemas, responses where the release has them."""
import asyncio
import json
import sys

import openai
import pydantic
from openai.types.chat import ChatCompletion, ChatCompletionChunk

try:
    import httpx2 as httpx
except ImportError:
    import httpx

SOCKET = sys.argv[1]
TOOLS = [{"type": "function", "function": {"name": "lamp", "description": "Switch the lamp.", "strict": True, "parameters": {
    "type": "object", "additionalProperties": False, "required": ["on"], "properties": {"on": {"type": "boolean"}}}}}]
ASK = {"model": "default", "messages": [{"role": "user", "content": "Turn on the kitchen light."}], "max_tokens": 60}
SCHEMA = {"type": "object", "additionalProperties": False, "required": ["on"], "properties": {"on": {"type": "boolean"}}}

http = httpx.Client(transport=httpx.HTTPTransport(uds=SOCKET))
client = openai.OpenAI(base_url="http://localhost/v1", api_key="-", http_client=http)
print("  openai", openai.__version__, "with", httpx.__name__, httpx.__version__)



def as_described(path, whole, piece, asked):
    """Holds an answer and its stream to OpenAI's own types, field by field; the client itself takes whatever comes."""
    answer = http.post(f"http://localhost/v1{path}", json=asked)
    assert answer.status_code == 200, answer.text
    whole.model_validate_json(answer.content, strict=True)
    pieces, one = 0, pydantic.TypeAdapter(piece)
    with http.stream("POST", f"http://localhost/v1{path}", json={**asked, "stream": True}) as stream:
        for line in stream.iter_lines():
            if line.startswith("data: ") and line != "data: [DONE]":
                one.validate_json(line.removeprefix("data: "), strict=True)
                pieces += 1
    assert pieces > 2, pieces
    return pieces


assert client.models.list().data[0].object == "model"
whole = client.chat.completions.create(**ASK, seed=1, user="me")
assert whole.choices[0].message.content and whole.usage.total_tokens > 0, whole
chunks = list(client.chat.completions.create(**ASK, stream=True, stream_options={"include_usage": True}))
text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
assert text == whole.choices[0].message.content, (text, whole)
assert chunks[-1].usage.total_tokens == whole.usage.total_tokens
print("  chat whole and streamed: the same", len(text), "characters")

called = client.chat.completions.create(**ASK, tools=TOOLS, tool_choice="required")
call = called.choices[0].message.tool_calls[0]
assert isinstance(json.loads(call.function.arguments)["on"], bool), call
assert called.choices[0].finish_reason == "tool_calls"
name, arguments = "", ""
for chunk in client.chat.completions.create(**ASK, tools=TOOLS, tool_choice="required", stream=True):
    for piece in (chunk.choices[0].delta.tool_calls or []) if chunk.choices else []:
        if piece.index == 0:
            name += piece.function.name or ""
            arguments += piece.function.arguments or ""
assert (name, arguments) == (call.function.name, call.function.arguments)
history = [*ASK["messages"], called.choices[0].message, *(
    {"role": "tool", "tool_call_id": c.id, "content": "done"} for c in called.choices[0].message.tool_calls)]
assert client.chat.completions.create(model="default", messages=history, max_tokens=20).choices
print("  tools whole and streamed:", arguments)

form = {"type": "json_schema", "json_schema": {"name": "lamp", "strict": True, "schema": SCHEMA}}
assert set(json.loads(client.chat.completions.create(**ASK, response_format=form).choices[0].message.content)) == {"on"}
pieces = sum(as_described("/chat/completions", ChatCompletion, ChatCompletionChunk, {**ASK, **more}) for more in (
    {"logprobs": True, "top_logprobs": 2, "seed": 1}, {"tools": TOOLS, "tool_choice": "required"}, {"response_format": form}))
print("  chat by OpenAI's types: whole, and", pieces, "pieces")
assert client.completions.create(model="default", prompt="Once", max_tokens=4).choices[0].finish_reason

try:
    client.chat.completions.create(**ASK, n=2)
except openai.APIStatusError as error:
    assert (error.status_code, error.code, error.param) == (501, "unsupported", "n"), error
else:
    raise SystemExit("n=2 was taken")

if hasattr(client, "responses"):
    response = client.responses.create(model="default", input="Turn on the kitchen light.", max_output_tokens=60)
    assert response.output_text == text, (response, text)
    with client.responses.create(model="default", input="Turn on the kitchen light.", max_output_tokens=60, stream=True) as events:
        kinds = [event.type for event in events]
    assert kinds[0] == "response.created" and kinds[-1] in ("response.completed", "response.incomplete"), kinds
    flat = [{"type": "function", **TOOLS[0]["function"]}]
    response = client.responses.create(model="default", input="On!", tools=flat, tool_choice="required")
    assert response.output[0].type == "function_call" and json.loads(response.output[0].arguments)
    from openai.types.responses import Response, ResponseStreamEvent
    ask = {"model": "default", "input": "Turn on the kitchen light.", "max_output_tokens": 60}
    pieces = sum(as_described("/responses", Response, ResponseStreamEvent, {**ask, **more}) for more in (
        {"instructions": "Be short."}, {"tools": flat, "tool_choice": "required"}))
    print("  responses whole, streamed and with tools; by OpenAI's types:", pieces, "events")


async def together():
    http = httpx.AsyncClient(transport=httpx.AsyncHTTPTransport(uds=SOCKET))
    client = openai.AsyncOpenAI(base_url="http://localhost/v1", api_key="-", http_client=http)
    answers = await asyncio.gather(*(client.chat.completions.create(**ASK) for _ in range(4)))
    assert all(answer.choices[0].message.content for answer in answers)
    stream = await client.chat.completions.create(**ASK, stream=True)
    assert "".join([c.choices[0].delta.content or "" async for c in stream if c.choices])
    await client.close()


asyncio.run(together())
print("  async: four at once, and a stream")
