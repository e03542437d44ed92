"""The API's document: it names every route, and real answers have the shapes that it promises."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import pytest

from server.access.roles import HTTP_RULES
from server.api import documents as shapes
from server.api.openapi import OPERATIONS, document
from tests.server.access.apps import rank_0_app, routes_of
from tests.server.api.conftest import Client, events
from tests.server.api.test_responses import named_events


def test_every_route_is_described_and_nothing_else() -> None:
    routes = {
        (method.lower(), path.replace(":path}", "}")) for method, path in routes_of(rank_0_app())
    }
    described = {(operation.method, operation.path) for operation in OPERATIONS}
    assert routes <= described
    rules = {(rule.method.lower(), rule.path.replace(":path}", "}")) for rule in HTTP_RULES}
    assert described <= rules


def references(value: Any) -> set[str]:
    if isinstance(value, dict):
        mine = {value["$ref"]} if isinstance(value.get("$ref"), str) else set()
        return mine.union(*map(references, value.values()))
    return set().union(*map(references, value)) if isinstance(value, list) else set()


def test_every_reference_is_there(client: Client) -> None:
    shown = client.request("GET", "/openapi.json").json()
    assert shown == json.loads(json.dumps(document()))
    names = {f"#/components/schemas/{name}" for name in shown["components"]["schemas"]}
    assert references(shown) <= names


def schema(kind: str, field: str) -> dict[str, Any]:
    found: dict[str, Any] = document()["components"]["schemas"][kind]["properties"][field]
    return found


def test_fields_are_described_as_they_are_validated() -> None:
    stop = json.dumps(schema("ChatBody", "stop"))
    assert '"maxItems": 4' in stop
    assert '{"type": "string"}' in stop
    assert schema("ChatBody", "temperature")["anyOf"][0] == {
        "maximum": 2,
        "minimum": 0,
        "type": "number",
    }
    assert schema("ChatBody", "store")["enum"] == [False, None]
    assert len(schema("CompletionBody", "prompt")["anyOf"]) == 4
    assert "function_call_output" in json.dumps(schema("ResponsesBody", "input"))


MESSAGES = [{"role": "user", "content": "hi"}]
ANSWERS: list[tuple[str, dict[str, Any], Any, Any]] = [
    (
        "/v1/chat/completions",
        {"messages": MESSAGES, "logprobs": True},
        shapes.ChatCompletion,
        shapes.ChatChunk,
    ),
    (
        "/v1/completions",
        {"prompt": "hi", "logprobs": 1},
        shapes.TextCompletion,
        shapes.TextCompletion,
    ),
    ("/v1/responses", {"input": "hi"}, shapes.ResponseDocument, shapes.ResponseEvent),
    (
        "/v1/messages",
        {"messages": MESSAGES, "max_tokens": 9},
        shapes.MessageDocument,
        shapes.MessageEvent,
    ),
]


@pytest.mark.parametrize(("path", "body", "answer", "event"), ANSWERS)
def test_answers_and_events_have_their_shapes(
    client: Client, path: str, body: dict[str, Any], answer: Any, event: Any
) -> None:
    whole = client.post(path, {"model": "tiny", **body})
    answer.model_validate(whole.json(), strict=True)
    response = client.post(path, {"model": "tiny", "stream": True, **body})
    read = events if event in (shapes.ChatChunk, shapes.TextCompletion) else named_events
    for each in read(response):
        event.model_validate(each, strict=True)


@pytest.mark.parametrize(("path", "body", "answer", "event"), ANSWERS)
def test_the_last_event_is_described(
    client: Client, path: str, body: dict[str, Any], answer: Any, event: Any
) -> None:
    stream = client.post(path, {"model": "tiny", "stream": True, **body}).text
    shown = document()["paths"][path]["post"]["responses"]["200"]["content"]["text/event-stream"]
    data = shown["schema"]["properties"]["data"]
    done = {"const": "[DONE]"} in data.get("anyOf", ())
    assert done == stream.endswith("data: [DONE]\n\n")


@pytest.mark.parametrize(
    ("path", "operation"),
    [
        ("/", "/"),
        ("/dashboard/app.js", "/dashboard/{name}"),
        ("/metrics", "/metrics"),
        ("/v1/models", "/v1/models"),
    ],
)
def test_answers_are_of_the_kind_that_is_described(path: str, operation: str) -> None:
    async def get() -> httpx.Response:
        transport = httpx.ASGITransport(rank_0_app())
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return await client.get(path)

    answer = asyncio.run(get())
    assert answer.status_code == 200
    [kind] = document()["paths"][operation]["get"]["responses"]["200"]["content"]
    assert kind in (answer.headers["content-type"].partition(";")[0], "*/*")


OTHERS: list[tuple[str, dict[str, Any], Any]] = [
    ("/v1/responses/input_tokens", {"model": "tiny", "input": "x"}, shapes.ResponseInputTokens),
    (
        "/v1/messages/count_tokens",
        {"model": "tiny", "messages": MESSAGES},
        shapes.MessageTokens,
    ),
    ("/tokenize", {"prompt": "x"}, shapes.Tokens),
    ("/detokenize", {"tokens": [1]}, shapes.Text),
]


@pytest.mark.parametrize(("path", "body", "answer"), OTHERS)
def test_other_answers(client: Client, path: str, body: dict[str, Any], answer: Any) -> None:
    answer.model_validate(client.post(path, body).json(), strict=True)


def test_models_and_errors(client: Client) -> None:
    listed = client.request("GET", "/v1/models").json()
    shapes.ModelList.model_validate(listed, strict=True)
    refused = client.chat(temperature=9).json()
    shapes.ErrorDocument.model_validate(refused, strict=True)
    refused = client.post("/v1/messages", {}).json()
    shapes.AnthropicError.model_validate(refused, strict=True)
