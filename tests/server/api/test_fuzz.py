"""Whatever the body is: a proper answer or a proper error, never a 500."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from server.api.messages.schemas import MessagesBody
from server.api.responses.schemas import ResponsesBody
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
    assert error["type"] in ("invalid_request_error", "not_found_error")
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


items = st.lists(
    st.fixed_dictionaries(
        {"role": roles | values, "content": st.text(max_size=5) | st.lists(parts) | values},
        optional={
            "type": st.sampled_from(
                ["message", "function_call", "function_call_output", "reasoning"]
            )
            | values,
            "call_id": values,
            "name": values,
            "arguments": st.text(max_size=5) | values,
            "output": st.text(max_size=5) | values,
            "summary": values,
        },
    )
    | values,
    max_size=3,
)


@few
@given(bodies(ResponsesBody, {"model": st.just("tiny"), "input": st.text(max_size=5) | items}))
def test_responses(body: dict[str, Any]) -> None:
    check("/v1/responses", body)


blocks = st.fixed_dictionaries(
    {"type": st.sampled_from(["text", "tool_use", "tool_result", "thinking", "image"]) | values},
    optional={
        "text": st.text(max_size=5) | values,
        "id": st.text(max_size=3) | values,
        "tool_use_id": st.text(max_size=3) | values,
        "name": st.text(max_size=3) | values,
        "input": st.dictionaries(st.text(max_size=3), values, max_size=2) | values,
        "content": st.text(max_size=3) | values,
        "thinking": st.text(max_size=3) | values,
    },
)
turns = st.lists(
    st.fixed_dictionaries(
        {"role": roles | values, "content": st.text(max_size=5) | st.lists(blocks) | values}
    )
    | values,
    max_size=3,
)


@few
@given(
    bodies(
        MessagesBody, {"model": st.just("tiny"), "messages": turns, "max_tokens": st.integers(1, 9)}
    )
)
def test_messages(body: dict[str, Any]) -> None:
    check("/v1/messages", body)


PATHS = (
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/responses",
    "/v1/responses/input_tokens",
    "/v1/messages",
    "/v1/messages/count_tokens",
)


@pytest.mark.parametrize("path", PATHS)
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
