"""The Responses API: its objects, the order of its events, and what is kept for later."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from pipeline.errors import EngineFault
from pipeline.request import TokenLogprobs
from server.api.app import create_app
from server.api.responses.output import Output
from tests.server.api.conftest import Client
from tests.server.api.fakes import TOKENIZER, FakeEngine, Script, ids


class Responses(Client):
    def respond(self, given: Any = "hi", **fields: Any) -> httpx.Response:
        return self.post("/v1/responses", {"model": "tiny", "input": given, **fields})


@pytest.fixture
def client(service: Any) -> Responses:
    return Responses(service)


def named_events(response: httpx.Response) -> list[Any]:
    """The data of all events, each under its own name."""
    assert response.headers["content-type"].startswith("text/event-stream")
    found = []
    for block in response.text.strip().split("\n\n"):
        if block.startswith(":"):
            continue
        name, data = block.split("\n")
        found.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {found[-1]['type']}"
    return found


def prompt_of(engine: FakeEngine, number: int = -1) -> str:
    return str(TOKENIZER.decode(list(engine.requests[number].prompt)))


def test_document(client: Responses) -> None:
    body = client.respond(metadata={"a": "b"}).json()
    assert body["object"] == "response"
    assert body["status"] == "completed"
    [message] = body["output"]
    assert message["role"] == "assistant"
    assert message["id"].startswith("msg_")
    part = {"type": "output_text", "text": "hello world", "annotations": [], "logprobs": []}
    assert message["content"] == [part]
    assert body["metadata"] == {"a": "b"}
    usage = body["usage"]
    assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"]


TEXT_EVENTS = [
    "response.created",
    "response.in_progress",
    "response.output_item.added",
    "response.content_part.added",
    "response.output_text.delta",
    "response.output_text.done",
    "response.content_part.done",
    "response.output_item.done",
    "response.completed",
]


def test_order_of_events(client: Responses) -> None:
    found = named_events(client.respond(stream=True))
    kinds = [event["type"] for event in found]
    assert list(dict.fromkeys(kinds)) == TEXT_EVENTS
    assert [event["sequence_number"] for event in found] == list(range(len(found)))
    deltas = [event["delta"] for event in found if event["type"].endswith("text.delta")]
    assert "".join(deltas) == "hello world"
    assert len(deltas) > 1


def test_a_stream_ends_with_the_document(client: Responses) -> None:
    whole = client.respond(store=False).json()
    last = named_events(client.respond(stream=True, store=False))[-1]["response"]
    assert _without_ids(whole) == _without_ids(last)


def _without_ids(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _without_ids(v) for k, v in value.items() if k not in ("id", "created_at")}
    return [_without_ids(item) for item in value] if isinstance(value, list) else value


@pytest.mark.parametrize("stream", [False, True])
def test_a_response_cut_short_is_incomplete(client: Responses, stream: bool) -> None:
    response = client.respond(max_output_tokens=2, stream=stream)
    if stream:
        last = named_events(response)[-1]
        assert last["type"] == "response.incomplete"
        body = last["response"]
    else:
        body = response.json()
    assert body["status"] == "incomplete"
    assert body["incomplete_details"] == {"reason": "max_output_tokens"}
    assert body["output"][0]["status"] == "incomplete"


def test_a_fault_in_a_stream_fails_the_response(client: Responses, engine: FakeEngine) -> None:
    engine.script = Script(ids("hello"), error=EngineFault("gone"))
    found = named_events(client.respond(stream=True))
    assert [event["type"] for event in found[-2:]] == ["error", "response.failed"]
    assert found[-1]["response"]["status"] == "failed"
    assert "internal_error" in (found[-2]["code"], found[-1]["response"]["error"]["code"])


def test_an_empty_answer_is_a_message_too(client: Responses, engine: FakeEngine) -> None:
    engine.script = Script()
    [message] = client.respond().json()["output"]
    assert message["content"][0]["text"] == ""


ITEMS = [
    {"type": "message", "role": "developer", "content": "be kind"},
    {"role": "user", "content": [{"type": "input_text", "text": "a"}, {"type": "input_text", "text": "b"}]},
    {
        "type": "message",
        "role": "assistant",
        "id": "msg_1",
        "status": "completed",
        "phase": "final_answer",
        "content": [{"type": "output_text", "text": "c", "annotations": [], "logprobs": []}],
    },
    {"role": "user", "content": "d"},
]  # fmt: skip


def test_instructions_and_items_are_the_conversation(client: Responses, engine: FakeEngine) -> None:
    assert client.respond(ITEMS, instructions="short").status_code == 200
    assert prompt_of(engine) == (
        "<|system|>short</s><|system|>be kind</s><|user|>ab</s><|assistant|>c</s><|user|>d</s>"
        "<|assistant|>"
    )


def test_a_response_goes_on_from_an_earlier_one(client: Responses, engine: FakeEngine) -> None:
    first = client.respond("hi", instructions="only once").json()
    second = client.respond("more", previous_response_id=first["id"]).json()
    assert second["previous_response_id"] == first["id"]
    assert prompt_of(engine) == (
        "<|user|>hi</s><|assistant|>hello world</s><|user|>more</s><|assistant|>"
    )
    streamed = named_events(client.respond("x", previous_response_id=second["id"], stream=True))
    assert client.request("GET", f"/v1/responses/{streamed[-1]['response']['id']}").is_success


def test_a_stored_response_can_be_had_and_deleted(client: Responses) -> None:
    made = client.respond(ITEMS).json()
    path = f"/v1/responses/{made['id']}"
    assert client.request("GET", path).json() == made
    items = client.request("GET", f"{path}/input_items?order=asc&limit=2").json()
    assert items["has_more"]
    assert [item["role"] for item in items["data"]] == ["developer", "user"]
    after = client.request("GET", f"{path}/input_items?order=asc&after={items['last_id']}").json()
    assert [item["role"] for item in after["data"]] == ["assistant", "user"]
    gone = client.request("DELETE", path).json()
    assert gone == {"id": made["id"], "object": "response", "deleted": True}
    for method in ("GET", "DELETE"):
        assert client.request(method, path).status_code == 404


def test_store_false_keeps_nothing(client: Responses) -> None:
    made = client.respond(store=False).json()
    assert client.request("GET", f"/v1/responses/{made['id']}").status_code == 404
    error = client.respond(previous_response_id=made["id"]).json()["error"]
    assert error["param"] == "previous_response_id"


def test_a_stored_response_is_seen_by_its_key_only(service: Any) -> None:
    app = create_app(service)

    async def as_key(key: str, method: str, path: str, **body: Any) -> httpx.Response:
        async def keyed(scope: Any, receive: Any, send: Any) -> None:
            scope.setdefault("state", {})["principal"] = SimpleNamespace(id=key)
            await app(scope, receive, send)

        transport = httpx.ASGITransport(keyed)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
            return await http.request(method, path, **body)

    async def scenario() -> list[int]:
        asked = {"model": "tiny", "input": "a secret"}
        made = (await as_key("a", "POST", "/v1/responses", json=asked)).json()["id"]
        path = f"/v1/responses/{made}"
        follow = {**asked, "previous_response_id": made}
        return [
            (await as_key("b", "GET", path)).status_code,
            (await as_key("b", "GET", f"{path}/input_items")).status_code,
            (await as_key("b", "DELETE", path)).status_code,
            (await as_key("b", "POST", "/v1/responses", json=follow)).status_code,
            (await as_key("a", "POST", "/v1/responses", json=follow)).status_code,
            (await as_key("a", "GET", path)).status_code,
        ]

    assert asyncio.run(scenario()) == [404, 404, 404, 404, 200, 200]


def test_log_probabilities(client: Responses, engine: FakeEngine) -> None:
    engine.script = Script(ids("ab"), logprobs=TokenLogprobs(-1.0, ((ids("a")[0], -1.0),)))
    asked = {"include": ["message.output_text.logprobs"], "top_logprobs": 1}
    [message] = client.respond(**asked).json()["output"]
    found = message["content"][0]["logprobs"]
    assert [(entry["token"], entry["logprob"]) for entry in found] == [("a", -1.0), ("b", -1.0)]
    assert found[0]["top_logprobs"][0]["token"] == "a"
    deltas = [e for e in named_events(client.respond(**asked, stream=True)) if "delta" in e]
    assert [entry for event in deltas for entry in event["logprobs"]] == found


def test_input_tokens(client: Responses, engine: FakeEngine) -> None:
    made = client.respond(ITEMS).json()
    body = {"model": "tiny", "input": ITEMS}
    counted = client.post("/v1/responses/input_tokens", body).json()
    assert counted == {
        "object": "response.input_tokens",
        "input_tokens": made["usage"]["input_tokens"],
    }
    assert len(engine.requests) == 1


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"model": None}, "model"),
    ({"input": None}, "input"),
    ({"input": []}, "input"),
    ({"input": 3}, "input"),
    ({"input": [3]}, "input.0"),
    ({"input": [{"role": "user"}]}, "input.0.content"),
    ({"input": [{"role": "judge", "content": "x"}]}, "input.0.role"),
    ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input.0.content.0"),
    ({"input": [{"type": "item_reference", "id": "x"}]}, "input.0"),
    ({"input": [{"type": "web_search_call"}]}, "input.0"),
    ({"input": "x" * 300}, "input"),
    ({"max_output_tokens": 0}, "max_output_tokens"),
    ({"temperature": 3}, "temperature"),
    ({"top_logprobs": 2}, "top_logprobs"),
    ({"include": ["file_search_call.results"]}, "include.0"),
    ({"background": True}, "background"),
    ({"conversation": "x"}, "conversation"),
    ({"prompt": {"id": "x"}}, "prompt"),
    ({"truncation": "auto"}, "truncation"),
    ({"max_tool_calls": 1}, "max_tool_calls"),
    ({"service_tier": "flex"}, "service_tier"),
    ({"tools": [{"type": "web_search"}]}, "tools.0"),
    ({"tool_choice": {"type": "mcp"}}, "tool_choice"),
    ({"previous_response_id": "resp_unknown"}, "previous_response_id"),
    ({"stream_options": {}}, "stream_options"),
    ({"stream": True, "stream_options": {"include_obfuscation": True}}, "stream_options.include_obfuscation"),
    ({"text": {"verbosity": "low"}}, "text.verbosity"),
    ({"text": {"format": {"type": "yaml"}}}, "text.format.type"),
    ({"metadata": {"a": 1}}, "metadata.a"),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "param"), REFUSED, ids=lambda value: repr(value)[:60])
def test_refused(client: Responses, engine: FakeEngine, fields: dict[str, Any], param: str) -> None:
    response = client.respond(**{"given": "hi", **_as_given(fields)})
    assert response.status_code in (400, 404), response.text
    error = response.json()["error"]
    assert (error["type"], error["param"]) == ("invalid_request_error", param)
    assert engine.requests == []


def _as_given(fields: dict[str, Any]) -> dict[str, Any]:
    return {("given" if name == "input" else name): value for name, value in fields.items()}


# the output as a state machine


def make_id(prefix: str, number: int) -> str:
    return f"{prefix}_{number}"


def call_delta(index: int, arguments: str, **more: Any) -> dict[str, Any]:
    function = {"arguments": arguments, **more.pop("function", {})}
    return {"tool_calls": [{"index": index, "function": function, **more}]}


CALL = [
    call_delta(0, "", id="c1", type="function", function={"name": "f"}),
    call_delta(0, '{"a":'),
    call_delta(0, "1}"),
    call_delta(1, "{}", id="c2", type="function", function={"name": "g"}),
]


def run(output: Output, deltas: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for delta in deltas:
        yield from output.take(delta)
    yield from output.end("completed")


def test_reasoning_text_and_calls_are_items_in_order() -> None:
    output = Output(make_id)
    deltas = [{"reasoning_content": "hm"}, {"reasoning_content": "."}, {"content": "so"}, *CALL]
    found = list(run(output, deltas))
    assert [(item["type"], item["id"]) for item in output.items] == [
        ("reasoning", "rs_0"),
        ("message", "msg_1"),
        ("function_call", "fc_2"),
        ("function_call", "fc_3"),
    ]
    assert output.items[0]["content"][0]["text"] == "hm."
    assert (output.items[2]["name"], output.items[2]["arguments"]) == ("f", '{"a":1}')
    for index, item in enumerate(output.items):
        mine = [event for event in found if event["output_index"] == index]
        assert mine[0]["type"] == "response.output_item.added"
        assert mine[-1] == {
            "type": "response.output_item.done",
            "output_index": index,
            "item": item,
        }
    arguments = [e["delta"] for e in found if e["type"].endswith("arguments.delta")]
    assert arguments == ['{"a":', "1}", "{}"]


def test_a_whole_message_gives_the_same_items() -> None:
    message = {
        "content": "so",
        "reasoning_content": "hm",
        "tool_calls": [
            {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}},
            {"id": "c2", "type": "function", "function": {"name": "g", "arguments": "{}"}},
        ],
    }
    output = Output(make_id)
    list(run(output, [message]))
    kinds = [item["type"] for item in output.items]
    assert kinds == ["reasoning", "message", "function_call", "function_call"]
    assert [item["call_id"] for item in output.items[2:]] == ["c1", "c2"]
