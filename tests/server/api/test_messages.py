"""Anthropic's Messages API: its objects, the order of its events, and its errors."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from pipeline.errors import EngineFault
from server.api.messages.blocks import Blocks
from tests.server.api.conftest import Client
from tests.server.api.fakes import FakeEngine, Script, ids
from tests.server.api.test_responses import CALL, named_events, prompt_of

DIRECT = {"caller": {"type": "direct"}}


class Messages(Client):
    def ask(self, content: Any = "hi", **fields: Any) -> httpx.Response:
        messages = [{"role": "user", "content": content}]
        body = {"model": "tiny", "max_tokens": 50, "messages": messages, **fields}
        return self.post("/v1/messages", body)


@pytest.fixture
def client(service: Any) -> Messages:
    return Messages(service)


def test_document(client: Messages, engine: FakeEngine) -> None:
    engine.script = Script(ids("hello world"), cached=2)
    body = client.ask().json()
    assert body["id"].startswith("msg_")
    assert (body["type"], body["role"], body["model"]) == ("message", "assistant", "tiny")
    assert body["content"] == [{"type": "text", "text": "hello world", "citations": None}]
    assert (body["stop_reason"], body["stop_sequence"]) == ("end_turn", None)
    usage = body["usage"]
    assert usage["input_tokens"] == len(engine.requests[0].prompt) - 2
    assert usage["cache_read_input_tokens"] == 2
    assert usage["output_tokens"] == len(ids("hello world")) + 1


def test_order_of_events(client: Messages) -> None:
    found = named_events(client.ask(stream=True))
    kinds = list(dict.fromkeys(event["type"] for event in found))
    assert kinds == [
        "message_start",
        "content_block_start",
        "content_block_delta",
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]
    assert found[0]["message"]["content"] == []
    assert found[0]["message"]["usage"]["input_tokens"] > 0
    texts = [e["delta"]["text"] for e in found if e["type"] == "content_block_delta"]
    assert "".join(texts) == "hello world"
    assert found[-2]["delta"] == {"stop_reason": "end_turn", "stop_sequence": None}
    assert found[-2]["usage"] == client.ask().json()["usage"]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("fields", "reason", "sequence"),
    [
        ({"max_tokens": 2}, "max_tokens", None),
        ({"stop_sequences": ["zz", "wo"]}, "stop_sequence", "wo"),
        ({"stop_sequences": ["zz"]}, "end_turn", None),
    ],
)
def test_reasons_to_stop(
    client: Messages, stream: bool, fields: dict[str, Any], reason: str, sequence: str | None
) -> None:
    response = client.ask(stream=stream, **fields)
    end = named_events(response)[-2]["delta"] if stream else response.json()
    assert (end["stop_reason"], end["stop_sequence"]) == (reason, sequence)


def test_system_and_blocks_are_the_conversation(client: Messages, engine: FakeEngine) -> None:
    cached = {"type": "text", "text": "a", "cache_control": {"type": "ephemeral"}}
    blocks = [cached, {"type": "text", "text": "b"}]
    history = [
        {"role": "user", "content": blocks},
        {"role": "assistant", "content": [{"type": "text", "text": "c"}]},
        {"role": "user", "content": "d"},
    ]
    assert client.ask(messages=history, system=blocks).status_code == 200
    assert prompt_of(engine) == (
        "<|system|>ab</s><|user|>ab</s><|assistant|>c</s><|user|>d</s><|assistant|>"
    )


@pytest.mark.parametrize("kind", ["disabled", "adaptive"])
def test_a_model_that_does_not_think_may_be_told_not_to(client: Messages, kind: str) -> None:
    assert client.ask(thinking={"type": kind}).status_code == 200


def test_count_tokens(client: Messages, engine: FakeEngine) -> None:
    asked = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "system": "x"}
    counted = client.post("/v1/messages/count_tokens", asked).json()
    client.ask(system="x")
    assert counted == {"input_tokens": len(engine.requests[0].prompt)}


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"model": None}, "model"),
    ({"max_tokens": None}, "max_tokens"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_tokens": 500}, "messages"),
    ({"messages": []}, "messages"),
    ({"messages": [{"role": "system", "content": "x"}]}, "messages.0.role"),
    ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "messages.0.content.0"),
    ({"messages": [{"role": "user", "content": [3]}]}, "messages.0.content.0"),
    ({"system": [{"type": "image"}]}, "system.0"),
    ({"temperature": 1.5}, "temperature"),
    ({"top_k": -1}, "top_k"),
    ({"stop_sequences": [""]}, "stop_sequences.0"),
    ({"tools": [{"type": "web_search_20250305", "name": "x"}]}, "tools.0"),
    ({"tool_choice": {"type": "tool"}}, "tool_choice.name"),
    ({"tool_choice": {"type": "auto", "name": "f"}}, "tool_choice.name"),
    ({"mcp_servers": [{}]}, "mcp_servers"),
    ({"container": "x"}, "container"),
    ({"thinking": {"type": "enabled", "budget_tokens": 1024}}, "thinking"),
    ({"service_tier": "priority"}, "service_tier"),
]


@pytest.mark.parametrize(("fields", "param"), REFUSED, ids=lambda value: repr(value)[:60])
def test_refused_in_the_shape_of_this_api(
    client: Messages, engine: FakeEngine, fields: dict[str, Any], param: str
) -> None:
    response = client.ask(**fields)
    assert response.status_code == 400, response.text
    body = response.json()
    assert (body["type"], body["error"]["type"]) == ("error", "invalid_request_error")
    assert body["error"]["param"] == param
    assert body["request_id"] == response.headers["x-request-id"]
    assert engine.requests == []


def test_other_errors_in_the_shape_of_this_api(client: Messages, engine: FakeEngine) -> None:
    assert client.ask(model="x").json()["error"]["type"] == "not_found_error"
    assert client.request("GET", "/v1/messages").json()["type"] == "error"
    engine.script = Script(error=EngineFault("gone"))
    assert client.ask().json()["error"]["type"] == "api_error"
    engine.script = Script(ids("hello"), error=EngineFault("gone"))
    assert named_events(client.ask(stream=True))[-1]["error"]["type"] == "api_error"


def test_thinking_text_and_calls_are_blocks_in_order() -> None:
    blocks = Blocks()
    found: list[dict[str, Any]] = []
    for delta in [{"reasoning_content": "hm"}, {"content": "s"}, {"content": "o"}, *CALL]:
        found += blocks.take(delta)
    found += blocks.end()
    assert blocks.shown == [
        {"type": "thinking", "thinking": "hm", "signature": ""},
        {"type": "text", "text": "so", "citations": None},
        {"type": "tool_use", "id": "c1", "name": "f", "input": {"a": 1}, **DIRECT},
        {"type": "tool_use", "id": "c2", "name": "g", "input": {}, **DIRECT},
    ]
    for index in range(4):
        mine = [event["type"] for event in found if event["index"] == index]
        assert mine[0] == "content_block_start"
        assert mine[-1] == "content_block_stop"
        assert set(mine[1:-1]) == {"content_block_delta"}
    parts = [e["delta"].get("partial_json") for e in found if "delta" in e]
    assert [part for part in parts if part] == ['{"a":', "1}", "{}"]


def test_an_empty_answer_has_a_block(client: Messages, engine: FakeEngine) -> None:
    engine.script = Script()
    assert client.ask().json()["content"] == [{"type": "text", "text": "", "citations": None}]
