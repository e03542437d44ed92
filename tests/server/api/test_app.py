from __future__ import annotations

import re
from typing import Any

import pytest
import structlog
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from server.api.errors import InvalidRequest
from server.api.service import Service
from tests.server.api.conftest import Client
from tests.server.api.fakes import TOKENIZER, FakeEngine, make_service


def error_of(response: Any, status: int) -> dict[str, Any]:
    assert response.status_code == status
    assert response.headers["content-type"] == "application/json"
    body = response.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    error: dict[str, Any] = body["error"]
    return error


def test_unknown_path(client: Client) -> None:
    error = error_of(client.request("GET", "/v2/nothing"), 404)
    assert (error["type"], error["code"]) == ("invalid_request_error", None)
    assert "/v2/nothing" in error["message"]


def test_unknown_method(client: Client) -> None:
    response = client.request("GET", "/v1/chat/completions")
    assert error_of(response, 405)["type"] == "invalid_request_error"
    assert response.headers["allow"] == "POST"


@pytest.mark.parametrize("path", ["/v1/models/", "/v1/chat/completions/", "/v1/", "//evil/"])
def test_a_slash_too_many_is_no_redirect(client: Client, path: str) -> None:
    response = client.request("GET", f"http://test{path}")
    error_of(response, 404)
    assert "location" not in response.headers


def body_with(value: str) -> bytes:
    """A request that is fine but for `value` in a place where anything goes."""
    messages = '[{"role": "user", "content": "x"}]'
    return f'{{"model": "tiny", "messages": {messages}, "extra": {value}}}'.encode()


TREACHEROUS = [
    (b"\xef\xbb\xbf" + body_with("1"), "begins with a byte order mark"),
    (body_with('"\\ud800"'), "hex escape"),
    (body_with('{"\\udc00": 1}'), "surrogate"),
    (body_with('"?"').replace(b"?", b"\xed\xa0\x80"), "unicode"),
    (body_with("NaN"), "expected value"),
    (body_with("-Infinity"), "not valid JSON"),
    (body_with("1e999"), "out of range: 1e999"),
    (body_with("9" * 5000), "out of range"),
    (body_with("[" * 500 + "]" * 500), "recursion"),
    (body_with('1, "model": "tiny"'), "has 'model' twice"),
    (body_with('{"a": {"b": 1, "b": 1}}'), "has 'b' twice"),
    (body_with("1")[:-1], "EOF"),
    (body_with("1") + b"\0", "trailing"),
    (body_with("1").decode().encode("utf-16"), "not valid JSON"),
]


@pytest.mark.parametrize(("body", "reason"), TREACHEROUS, ids=[reason for _, reason in TREACHEROUS])
def test_json_that_parsers_disagree_on(client: Client, body: bytes, reason: str) -> None:
    response = client.request("POST", "/v1/chat/completions", content=body)
    assert reason in error_of(response, 400)["message"]


@pytest.mark.parametrize("value", ["1e308", "9" * 4000, "[" * 150 + "]" * 150, '"\\ud83d\\ude00"'])
def test_json_that_is_only_unusual(client: Client, value: str) -> None:
    response = client.request("POST", "/v1/chat/completions", content=body_with(value))
    assert response.status_code == 200


@pytest.mark.parametrize(
    "field", ["temperature", "seed", "max_tokens", "top_k", "stop", "logit_bias"]
)
def test_huge_numbers_in_known_fields(client: Client, field: str) -> None:
    body = body_with("1").replace(b'"extra": 1', f'"{field}": {"9" * 4000}'.encode())
    error = error_of(client.request("POST", "/v1/chat/completions", content=body), 400)
    assert error["param"] == field
    assert len(error["message"]) < 500


def test_top_k_beyond_the_vocabulary_is_the_vocabulary(client: Client, engine: FakeEngine) -> None:
    assert client.chat(top_k=1 << 40).status_code == 200
    assert engine.requests[0].params.top_k == len(TOKENIZER.get_vocab())


BROKEN = [
    b"",
    b"{",
    b"[" * 100_000,
    b"\xff",
    b'{"model": NaN}',
    b'{"model": "\\ud800"}',
    b"[]",
    b"null",
    b'"text"',
]


@pytest.mark.parametrize("body", BROKEN, ids=lambda body: repr(body[:20]))
def test_broken_json(client: Client, body: bytes) -> None:
    error = error_of(client.request("POST", "/v1/chat/completions", content=body), 400)
    assert (error["type"], error["param"]) == ("invalid_request_error", None)


@pytest.mark.parametrize("declared", [True, False])
def test_body_too_large(engine: FakeEngine, declared: bool) -> None:
    client = Client(make_service(engine, max_body_bytes=1000))

    async def pieces() -> Any:
        for _ in range(11):
            yield b" " * 100

    content = b" " * 1001 if declared else pieces()
    response = client.request("POST", "/v1/completions", content=content)
    error = error_of(response, 413)
    assert (error["type"], error["code"]) == ("invalid_request_error", "request_too_large")
    assert error_of(client.request("POST", "/v1/completions", content=b" " * 1000), 400)


@pytest.mark.parametrize("model", ["tiny", "default", "org/tiny"])
def test_models(client: Client, model: str) -> None:
    assert client.chat(model=model).json()["model"] == "tiny"
    shown = client.request("GET", f"/v1/models/{model}").json()
    assert client.request("GET", "/v1/models").json() == {"object": "list", "data": [shown]}
    assert shown["id"] == "tiny"
    assert shown["max_model_len"] == 200


def test_unknown_model(client: Client) -> None:
    for response in (client.chat(model="gpt-9"), client.request("GET", "/v1/models/gpt-9")):
        error = error_of(response, 404)
        assert (error["param"], error["code"]) == ("model", "model_not_found")
        assert "gpt-9" in error["message"]


def test_no_models_while_loading(service: Service, client: Client) -> None:
    service.model = None
    assert client.request("GET", "/v1/models").json()["data"] == []
    error_of(client.request("GET", "/v1/models/tiny"), 404)


@pytest.mark.parametrize("given", ["abc-1", "x" * 128])
def test_request_id_is_kept(client: Client, given: str) -> None:
    response = client.request("GET", "/v1/models", headers={"x-request-id": given})
    assert response.headers["x-request-id"] == given


@pytest.mark.parametrize("given", [None, "", "x" * 129, "a b", "ä", "a\tb"])
def test_request_id_is_made(client: Client, given: str | None) -> None:
    headers = {} if given is None else {"x-request-id": given.encode()}
    response = client.request("GET", "/nowhere", headers=headers)
    assert re.fullmatch(r"req_[0-9a-f]{32}", response.headers["x-request-id"])


def test_unknown_fields_are_logged_once(client: Client) -> None:
    with structlog.testing.capture_logs() as logs:
        for _ in range(2):
            messages = [{"role": "user", "content": "x", "mood": "good"}]
            assert client.chat(messages=messages, frobnicate=1).status_code == 200
    fields = [entry["field"] for entry in logs if "field" in entry]
    assert fields == ["frobnicate", "messages[].mood"]


def test_invented_field_names_do_not_fill_the_log(client: Client) -> None:
    with structlog.testing.capture_logs() as logs:
        client.chat(**{"x" * 1000 + str(number): 1 for number in range(9)})
        client.chat(**{f"field{number}": 1 for number in range(1000)})
    fields = [entry["field"] for entry in logs]
    assert len(fields) == len(set(fields)) == 256
    assert max(map(len, fields)) == 80


def test_extra_routes_come_first_and_share_errors(engine: FakeEngine) -> None:
    async def refuse(request: Request) -> PlainTextResponse:
        raise InvalidRequest("not that", param="that")

    client = Client(make_service(engine), [Route("/v1/models", refuse)])
    response = client.request("GET", "/v1/models")
    assert error_of(response, 400)["param"] == "that"
    assert response.headers["x-request-id"]
