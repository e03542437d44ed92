"""Tools and thinking through the APIs that are translated to chat: there and back, whole and streamed."""

from __future__ import annotations

from typing import Any

import pytest

from tests.server.api.conftest import Client
from tests.server.api.fakes import FakeEngine, Script, make_service
from tests.server.api.test_responses import named_events
from tests.server.api.test_tools import CALL, THINKER, TOOL, ids

SAID = f"hm</think>I look.{CALL}"
FUNCTION = TOOL["function"]
SCHEMA = FUNCTION["parameters"]


@pytest.fixture
def client(engine: FakeEngine) -> Client:
    engine.script = Script(ids(THINKER, f"<think>{SAID}"))
    return Client(make_service(engine, tokenizer=THINKER, max_model_len=4000))


def prompt_of(engine: FakeEngine) -> str:
    return str(THINKER.decode(list(engine.requests[-1].prompt)))


RESPONSES = {
    "model": "tiny",
    "input": "How is Rome?",
    "reasoning": {"effort": "low"},
    "tools": [{"type": "function", **FUNCTION}],
}


def test_responses(client: Client, engine: FakeEngine) -> None:
    made = client.post("/v1/responses", RESPONSES).json()
    kinds = [item["type"] for item in made["output"]]
    assert kinds == ["reasoning", "message", "function_call"]
    thought, message, call = made["output"]
    assert thought["content"] == [{"type": "reasoning_text", "text": "hm"}]
    assert message["content"][0]["text"] == "I look."
    assert (call["name"], call["arguments"]) == ("weather", '{"city": "Rome"}')
    assert made["usage"]["output_tokens_details"]["reasoning_tokens"] > 0
    streamed = named_events(client.post("/v1/responses", {**RESPONSES, "stream": True}))
    last = streamed[-1]["response"]["output"]
    assert [item["type"] for item in last] == kinds
    assert last[2]["arguments"] == call["arguments"]
    arguments = [event for event in streamed if event["type"].endswith("arguments.delta")]
    assert "".join(event["delta"] for event in arguments) == call["arguments"]

    # What the function said goes back, after all that was output.
    result = {"type": "function_call_output", "call_id": call["call_id"], "output": "sunny"}
    history = [{"role": "user", "content": "How is Rome?"}, *made["output"], result]
    assert client.post("/v1/responses", {**RESPONSES, "input": history}).status_code == 200
    by_hand = prompt_of(engine)
    kept = {**RESPONSES, "input": [result], "previous_response_id": made["id"]}
    assert client.post("/v1/responses", kept).status_code == 200
    assert prompt_of(engine) == by_hand
    assert "!weather=Rome" in by_hand
    assert "<|tool|>sunny" in by_hand


MESSAGES: dict[str, Any] = {
    "model": "tiny",
    "max_tokens": 100,
    "messages": [{"role": "user", "content": "How is Rome?"}],
    "thinking": {"type": "enabled", "budget_tokens": 1024},
    "tools": [{"name": "weather", "input_schema": SCHEMA}],
}


def test_messages(client: Client, engine: FakeEngine) -> None:
    made = client.post("/v1/messages", MESSAGES).json()
    thought, text, call = made["content"]
    assert (thought["type"], thought["thinking"]) == ("thinking", "hm")
    assert (text["type"], text["text"]) == ("text", "I look.")
    assert (call["type"], call["name"], call["input"]) == ("tool_use", "weather", {"city": "Rome"})
    assert made["stop_reason"] == "tool_use"
    streamed = named_events(client.post("/v1/messages", {**MESSAGES, "stream": True}))
    begun = [e["content_block"]["type"] for e in streamed if e["type"] == "content_block_start"]
    assert begun == ["thinking", "text", "tool_use"]
    assert streamed[-2]["delta"]["stop_reason"] == "tool_use"

    result = {"type": "tool_result", "tool_use_id": call["id"], "content": "sunny"}
    turns = [
        *MESSAGES["messages"],
        {"role": "assistant", "content": made["content"]},
        {"role": "user", "content": [result, {"type": "text", "text": "So?"}]},
    ]
    assert client.post("/v1/messages", {**MESSAGES, "messages": turns}).status_code == 200
    assert "!weather=Rome" in prompt_of(engine)
    assert "<|tool|>sunny@weather</s><|user|>So?" in prompt_of(engine)


FORCED = [
    ("/v1/responses", RESPONSES, {"type": "function", "name": "weather"}),
    ("/v1/responses", RESPONSES, "required"),
    ("/v1/messages", MESSAGES, {"type": "tool", "name": "weather"}),
    ("/v1/messages", MESSAGES, {"type": "any"}),
]


@pytest.mark.parametrize(("path", "body", "choice"), FORCED)
def test_a_forced_call_is_a_constraint(
    client: Client, engine: FakeEngine, path: str, body: dict[str, Any], choice: Any
) -> None:
    assert client.post(path, {**body, "tool_choice": choice}).status_code == 200
    constraint = engine.requests[-1].params.constraint
    assert constraint is not None
    assert "weather" in constraint.text


@pytest.mark.parametrize(("path", "body", "choice"), FORCED)
def test_a_choice_that_is_no_tool_is_refused_by_name(
    client: Client, path: str, body: dict[str, Any], choice: Any
) -> None:
    response = client.post(path, {**body, "tools": [], "tool_choice": choice})
    assert response.status_code == 400
    assert response.json()["error"]["param"].startswith("tool")
