"""Python's openai asks for vectors over the Unix socket, of a model that gives none (`none`) or some (`vectors`)."""
import array
import math
import sys

import openai
from openai.types import CreateEmbeddingResponse

try:
    import httpx2 as httpx
except ImportError:
    import httpx

SOCKET, GIVES = sys.argv[1:]
WIDTH = 128
# What is refused is refused again: trying again, as the client does with every 5xx, would only take time.
http = httpx.Client(transport=httpx.HTTPTransport(uds=SOCKET))
client = openai.OpenAI(base_url="http://localhost/v1", api_key="-", http_client=http, max_retries=0)


def refused(status, code, param, **asked):
    try:
        client.embeddings.create(**{"model": "default", "input": "Turn on the light.", **asked})
    except openai.APIStatusError as error:
        assert (error.status_code, error.code, error.param) == (status, code, param), error
        assert error.type in ("invalid_request_error", "server_error") and error.body["message"], error.body
        return error.body["message"]
    raise SystemExit(f"{asked} was taken")


if GIVES == "none":
    print("  no vectors:", refused(501, "unsupported", None))
    sys.exit()

texts = ["Turn on the light.", "Lights on!", "How warm is it?"]
# Newer clients ask for base64 by themselves and turn it into numbers.
packed = client.embeddings.create(model="default", input=texts)
plain = client.embeddings.with_raw_response.create(model="default", input=texts, encoding_format="float", dimensions=WIDTH, user="me")
# By OpenAI's own types, every field and its type; the client itself takes whatever comes.
checked = CreateEmbeddingResponse.model_validate_json(plain.content, strict=True)
assert [entry.index for entry in checked.data] == [0, 1, 2] and checked.usage.prompt_tokens == packed.usage.total_tokens > 3, checked.usage
for one, other in zip(packed.data, checked.data, strict=True):
    # JSON has the shortest digits that mean a number in single precision, base64 its bits.
    assert len(one.embedding) == WIDTH and array.array("f", one.embedding) == array.array("f", other.embedding)
    assert math.isclose(sum(number * number for number in one.embedding), 1, abs_tol=1e-5)
one = client.embeddings.create(model=checked.model, input=texts[1])
assert one.data[0].embedding == packed.data[1].embedding
assert len(client.embeddings.create(model="default", input=[[5, 6, 7], [9]]).data) == 2
refused(501, "unsupported", "dimensions", dimensions=64)
refused(404, "not_found", "model", model="other")
refused(400, "context_length_exceeded", "input[1]", input=["x", "the light " * 800])
refused(400, "bad_request", "input", input=[])
print("  openai", openai.__version__, "vectors as it asks for them and as numbers: the same", WIDTH, "of each of", len(texts), "texts")
