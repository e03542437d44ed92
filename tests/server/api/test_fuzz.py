"""Whatever the body is: a proper answer or a proper error, never a 500."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from server.api.schemas import ChatBody, CompletionBody
from tests.server.api.conftest import Client
from tests.server.api.fakes import FakeEngine, Script, ids, make_service

scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-3, 30)
    | st.floats(allow_nan=False)
    | st.text(st.characters(codec="utf-8"), max_size=8)
)
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(st.characters(codec="utf-8"), max_size=8), inner, max_size=3)
    ),
    max_leaves=6,
)
roles = st.sampled_from(["system", "developer", "user", "assistant", "tool"])
parts = st.fixed_dictionaries(
    {"type": st.just("text") | values, "text": st.text(max_size=5) | values}
)
messages = st.lists(
    st.fixed_dictionaries(
        {"role": roles | values, "content": st.text(max_size=5) | st.lists(parts) | values},
        optional={"name": values, "tool_calls": values, "refusal": values},
    )
    | values,
    max_size=3,
)


def bodies(kind: type[Any], good: dict[str, Any]) -> st.SearchStrategy[dict[str, Any]]:
    strategies = {name: good.get(name, values) | values for name in kind.model_fields}
    fixed = {name: good[name] for name in ("model", *(set(good) - {"model"}))}
    names = [name for name in strategies if name not in fixed]
    few = st.lists(st.sampled_from(names), max_size=3, unique=True)
    return few.flatmap(
        lambda chosen: st.fixed_dictionaries(
            {
                name: st.one_of(fixed[name], values) if name != "model" else fixed[name]
                for name in fixed
            },
            optional={"junk": values},
        ).flatmap(
            lambda base: st.fixed_dictionaries({name: strategies[name] for name in chosen}).map(
                lambda extra: {**base, **extra}
            )
        )
    )


def check(path: str, body: Any) -> None:
    client = Client(make_service(FakeEngine(Script(ids("hello world")))))
    response = client.request("POST", path, content=json.dumps(body).encode())
    if response.status_code == 200:
        return
    assert response.status_code in (400, 404), response.text
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    assert error["message"]


few = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@few
@given(bodies(ChatBody, {"model": st.just("tiny"), "messages": messages}))
def test_chat(body: dict[str, Any]) -> None:
    check("/v1/chat/completions", body)


prompts = (
    st.text(max_size=5) | st.lists(st.integers(-1, 300), max_size=4) | st.lists(st.text(max_size=3))
)


@few
@given(bodies(CompletionBody, {"model": st.just("tiny"), "prompt": prompts}))
def test_completions(body: dict[str, Any]) -> None:
    check("/v1/completions", body)


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
@settings(max_examples=50, deadline=None)
@given(body=st.binary(max_size=30))
def test_bytes(path: str, body: bytes) -> None:
    client = Client(make_service(FakeEngine()))
    response = client.request("POST", path, content=body)
    assert response.status_code == 400
    assert response.json()["error"]["type"] == "invalid_request_error"


@few
@given(st.dictionaries(st.text(max_size=12), values, max_size=3))
def test_template_variables(kwargs: dict[str, Any]) -> None:
    body = {
        "model": "tiny",
        "messages": [{"role": "user", "content": "x"}],
        "chat_template_kwargs": kwargs,
    }
    check("/v1/chat/completions", body)
