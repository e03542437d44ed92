"""Anthropic's Python client: messages, streams, counting, tools, errors."""

import sys

import anthropic

URL, MODEL = sys.argv[1:]
QUESTION = [{"role": "user", "content": "What is the capital of France?"}]
TOOL = {
    "name": "count",
    "input_schema": {
        "type": "object",
        "properties": {"n": {"type": "integer", "maximum": 99}},
        "required": ["n"],
        "additionalProperties": False,
    },
}

client = anthropic.Anthropic(base_url=URL.removesuffix("/v1"), api_key="none", timeout=600.0)
answer = client.messages.create(model=MODEL, max_tokens=50, messages=QUESTION)
assert "Paris" in answer.content[0].text
assert answer.stop_reason == "end_turn"
with client.messages.stream(model=MODEL, max_tokens=50, messages=QUESTION) as stream:
    assert "".join(stream.text_stream) == answer.content[0].text
    assert stream.get_final_message().usage.output_tokens == answer.usage.output_tokens
counted = client.messages.count_tokens(model=MODEL, messages=QUESTION).input_tokens
usage = answer.usage
assert counted == usage.input_tokens + usage.cache_read_input_tokens
called = client.messages.create(
    model=MODEL,
    max_tokens=100,
    messages=QUESTION,
    tools=[TOOL],
    tool_choice={"type": "tool", "name": "count"},
)
assert called.stop_reason == "tool_use"
assert called.content[-1].name == "count"
try:
    client.messages.create(model="claude-9", max_tokens=5, messages=QUESTION)
except anthropic.NotFoundError as error:
    assert error.body["error"]["type"] == "not_found_error"
else:
    raise AssertionError("no error")
print("ok")
