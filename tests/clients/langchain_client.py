"""LangChain's OpenAI chat class over the Unix socket: whole, streamed, tools, structured output."""
import sys

from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from pydantic import BaseModel

try:
    import httpx2 as httpx
except ImportError:
    import httpx

http = httpx.Client(transport=httpx.HTTPTransport(uds=sys.argv[1]))
chat = ChatOpenAI(model="default", base_url="http://localhost/v1", api_key="-", http_client=http, max_tokens=60, temperature=0)


@tool
def lamp(on: bool) -> str:
    """Switch the lamp."""
    return "done"


class Lamp(BaseModel):
    """A lamp's state."""
    on: bool


question = "Turn on the kitchen light."
whole = chat.invoke(question)
assert isinstance(whole, AIMessage) and whole.content and whole.usage_metadata["total_tokens"] > 0, whole
text = "".join(chunk.content for chunk in chat.stream(question))
assert text == whole.content, (text, whole)
called = chat.bind_tools([lamp], tool_choice="any").invoke(question)
assert called.tool_calls[0]["name"] == "lamp" and isinstance(called.tool_calls[0]["args"]["on"], bool), called
results = [ToolMessage("done", tool_call_id=call["id"]) for call in called.tool_calls]
assert chat.bind_tools([lamp]).invoke([HumanMessage(question), called, *results]) is not None
for method in ("json_schema", "function_calling"):
    assert isinstance(chat.with_structured_output(Lamp, method=method).invoke(question).on, bool), method
print("  whole, streamed, tools and their results, structured output both ways")
