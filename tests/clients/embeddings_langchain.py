"""LangChain's OpenAIEmbeddings over the Unix socket: documents and a question."""
import sys

from langchain_openai import OpenAIEmbeddings

try:
    import httpx2 as httpx
except ImportError:
    import httpx

http = httpx.Client(transport=httpx.HTTPTransport(uds=sys.argv[1]))
# Cutting texts to what a model reads needs OpenAI's own tokens; promptd says by itself what is too long.
embeddings = OpenAIEmbeddings(model="default", base_url="http://localhost/v1", api_key="-", http_client=http, check_embedding_ctx_length=False)
documents = ["The garage door is open.", "The kitchen light is on."]
vectors = embeddings.embed_documents(documents)
assert [embeddings.embed_query(text) for text in documents] == vectors, "alone and together"


def nearness(one, other):
    return sum(a * b for a, b in zip(one, other, strict=True))


# A text is nearest to itself.
assert all(nearness(vector, vector) > nearness(*vectors) for vector in vectors), vectors
print("  documents and questions:", len(vectors[0]), "numbers each")
