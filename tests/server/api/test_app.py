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
from tests.server.api.fakes import FakeEngine, make_service


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
