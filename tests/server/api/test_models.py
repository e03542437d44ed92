"""Configured models, loaded or not; token ids of texts; and what is refused as a whole."""

from __future__ import annotations

import contextvars
from typing import Any

import pytest

from config import Config
from server.access import account
from server.access.principal import Principal, Role
from server.api.errors import NotLoaded
from server.api.service import Listed
from server.api.switching import SWITCH_PATH, Switching
from server.leader import catalog_of
from tests.server.api.conftest import Client
from tests.server.api.fakes import FakeEngine, ids, make_service

CATALOG = (Listed("tiny", 100), Listed("big", 4096, ("org/big",)), Listed("open"))


def client_with(engine: FakeEngine, **settings: Any) -> Client:
    return Client(make_service(engine, catalog=CATALOG, **settings))


def test_all_configured_models_are_listed_the_loaded_one_first(engine: FakeEngine) -> None:
    client = client_with(engine)
    listed = client.request("GET", "/v1/models").json()["data"]
    shown = [(model["id"], model["loaded"], model["max_model_len"]) for model in listed]
    assert shown == [("tiny", True, 200), ("big", False, 4096), ("open", False, None)]
    assert client.request("GET", "/v1/models/big").json() == listed[1]
    assert client.request("GET", "/v1/models/org/big").json() == listed[1]
    assert client.request("GET", "/v1/models/org/tiny").json() == listed[0]
    assert client.request("GET", "/v1/models/other").status_code == 404


def test_while_it_loads_no_model_is_loaded(engine: FakeEngine) -> None:
    service = make_service(engine, catalog=CATALOG)
    service.model = None
    listed = Client(service).request("GET", "/v1/models").json()["data"]
    assert [(model["id"], model["loaded"]) for model in listed] == [
        ("tiny", False),
        ("big", False),
        ("open", False),
    ]


SWITCHES = [
    (Switching(), "Restart the server with --model big", "false", None),
    (Switching(automatic=True), "Restart the server with --model big", "false", None),
    (Switching(supervised=True), f"POST {SWITCH_PATH}", "false", None),
    (Switching(supervised=True, automatic=True), "being loaded", None, "big"),
]


@pytest.mark.parametrize(("switching", "advice", "again", "switch"), SWITCHES)
@pytest.mark.parametrize("path", ["chat/completions", "completions", "responses", "messages"])
def test_a_model_that_is_not_loaded(
    engine: FakeEngine,
    path: str,
    switching: Switching,
    advice: str,
    again: str | None,
    switch: str | None,
) -> None:
    client = client_with(engine, switching=switching)
    messages = [{"role": "user", "content": "x"}]
    given = {"completions": {"prompt": "x"}, "responses": {"input": "x"}}
    body = given.get(path, {"messages": messages, "max_tokens": 5})
    response = client.post(f"/v1/{path}", {"model": "org/big", **body})
    assert response.status_code == 503
    error = response.json()["error"]
    assert (error["code"], error["param"]) == ("model_not_loaded", "model")
    assert advice in error["message"]
    assert response.headers.get("x-should-retry") == again
    assert response.headers.get("x-mlxc-switch-model") == switch


AUTOMATIC = Switching(supervised=True, automatic=True, role=Role.OPERATOR, stay=60)


def asked_by(role: Role, age: float) -> NotLoaded:
    return AUTOMATIC.not_loaded("big", "tiny", role, age)


def test_who_may_have_the_model_switched() -> None:
    assert not asked_by(Role.USER, 1e6).switch
    assert "role operator" in str(asked_by(Role.USER, 1e6))
    assert asked_by(Role.OPERATOR, 1e6).switch
    assert asked_by(Role.ADMIN, 1e6).switch


def test_a_model_stays_for_a_while() -> None:
    early = asked_by(Role.OPERATOR, 20.5)
    assert not early.switch
    assert early.headers == {"retry-after": "40"}
    assert "60 seconds" in str(early)
    assert asked_by(Role.OPERATOR, 60).switch


def test_the_role_and_the_age_are_those_of_the_request(engine: FakeEngine) -> None:
    service = make_service(engine, catalog=CATALOG, switching=AUTOMATIC, clock=lambda: 100.0)
    for role, loaded_at, switch in [
        (Role.OPERATOR, 40.0, True),
        (Role.OPERATOR, 41.0, False),
        (Role.USER, 40.0, False),
    ]:
        service.loaded_at = loaded_at

        def ask(asker: Role = role) -> None:
            account.enter(account.Account(Principal("k", "Ann", asker)))
            service.serving("big")

        with pytest.raises(NotLoaded) as error:
            contextvars.copy_context().run(ask)
        assert error.value.switch is switch


def test_a_switch_needs_the_launcher(client: Client) -> None:
    for method in ("GET", "POST"):
        error = client.request(method, SWITCH_PATH).json()["error"]
        assert error["code"] == "unsupported_endpoint"
        assert "--model" in error["message"]


def test_the_catalog_is_that_of_the_configuration() -> None:
    models = {"a": {"source": "org/a", "max_model_len": 5}, "b": {"source": "demo"}}
    config = Config.model_validate({"models": models, "default_model": "a"})
    assert catalog_of(config) == (Listed("a", 5, ("org/a",)), Listed("b", None, ()))
    unlisted = Config.model_validate({"models": models, "default_model": "org/c"})
    assert catalog_of(unlisted)[-1] == Listed("org/c", None, ())


# token ids


def test_tokenize_and_back(client: Client) -> None:
    body = client.post("/tokenize", {"prompt": "hello", "return_token_strs": True}).json()
    expected = ids("hello")
    assert body["tokens"] == expected
    assert (body["count"], body["max_model_len"]) == (len(expected), 200)
    assert body["token_strs"] == ["hello"]
    text = client.post("/detokenize", {"model": "tiny", "tokens": expected}).json()
    assert text == {"prompt": "hello"}


def test_tokenize_messages_as_a_request_would(client: Client, engine: FakeEngine) -> None:
    messages = [{"role": "user", "content": "hi"}]
    body = client.post("/tokenize", {"model": "tiny", "messages": messages}).json()
    client.chat("hi")
    assert body["tokens"] == list(engine.requests[0].prompt)


HI = {"role": "user", "content": "hi"}
BAD: list[tuple[str, dict[str, Any], str]] = [
    ("/tokenize", {}, "prompt"),
    ("/tokenize", {"prompt": "x", "messages": []}, "prompt"),
    ("/tokenize", {"prompt": 3}, "prompt"),
    ("/tokenize", {"messages": []}, "messages"),
    ("/tokenize", {"messages": [{"role": "judge"}]}, "messages.0.role"),
    ("/tokenize", {"messages": [HI], "add_special_tokens": True}, "add_special_tokens"),
    ("/tokenize", {"prompt": "x", "add_generation_prompt": False}, "add_generation_prompt"),
    ("/detokenize", {}, "tokens"),
    ("/detokenize", {"tokens": [-1]}, "tokens.0"),
    ("/detokenize", {"tokens": [10**6]}, "tokens"),
]  # fmt: skip


@pytest.mark.parametrize(("path", "body", "param"), BAD)
def test_bad_bodies(client: Client, path: str, body: dict[str, Any], param: str) -> None:
    response = client.post(path, body)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == param


def test_embeddings_are_refused_by_name(client: Client) -> None:
    response = client.post("/v1/embeddings", {"model": "tiny", "input": "x"})
    assert response.status_code == 400
    error = response.json()["error"]
    assert error["code"] == "unsupported_endpoint"
    assert "embeddings" in error["message"]


# browsers and headers


def test_no_page_of_another_origin_may_call(client: Client) -> None:
    headers = {"origin": "https://a.example", "access-control-request-method": "POST"}
    assert client.request("OPTIONS", "/v1/models", headers=headers).status_code == 405
    shown = client.request("GET", "/v1/models", headers=headers).headers
    assert not [name for name in shown if name.startswith("access-control")]


def test_pages_of_configured_origins_may_call(engine: FakeEngine) -> None:
    client = client_with(engine, cors_origins=("https://a.example",))
    headers = {
        "origin": "https://a.example",
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization,content-type",
    }
    preflight = client.request("OPTIONS", "/v1/chat/completions", headers=headers)
    assert preflight.status_code == 200
    assert preflight.headers["access-control-allow-origin"] == "https://a.example"
    answer = client.request("GET", "/v1/models", headers={"origin": "https://a.example"})
    assert answer.headers["access-control-allow-origin"] == "https://a.example"
    other = {**headers, "origin": "https://b.example"}
    assert client.request("OPTIONS", "/v1/models", headers=other).status_code == 400
    shown = client.request("GET", "/v1/models", headers={"origin": "https://b.example"}).headers
    assert "access-control-allow-origin" not in shown


def test_too_many_headers_or_too_long_a_path(client: Client) -> None:
    many = {f"x-{number}": "1" for number in range(120)}
    for response in (
        client.request("GET", "/v1/models", headers=many),
        client.request("GET", "/v1/models?" + "x" * 9000),
    ):
        assert response.status_code == 431
        assert response.json()["error"]["code"] == "request_too_large"
        assert response.headers["x-request-id"]
