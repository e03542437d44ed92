"""LangChain's ChatOpenAI over Chat Completions and over Responses, and its bound tools."""

import sys

from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAI

URL, MODEL = sys.argv[1:]
OPTIONS = {"base_url": URL, "api_key": "none", "model": MODEL, "timeout": 600, "temperature": 0}
QUESTION = "What is the capital of France?"


@tool
def double(n: int) -> int:
    """Twice a number."""
    return 2 * n


chat = ChatOpenAI(**OPTIONS)
assert "Paris" in chat.invoke(QUESTION).content
assert "Paris" in "".join(part.content for part in chat.stream(QUESTION))
assert "Paris" in ChatOpenAI(**OPTIONS, use_responses_api=True).invoke(QUESTION).text
assert "Paris" in OpenAI(**OPTIONS, max_tokens=5).invoke("The capital of France is")
forced = chat.bind_tools([double], tool_choice="double", parallel_tool_calls=False)
[call] = forced.invoke("Double 4", max_tokens=200).tool_calls
assert call["name"] == "double"
print("ok")
