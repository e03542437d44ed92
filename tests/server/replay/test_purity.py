"""The body of every answer is a function of request, context and events."""

from __future__ import annotations

import itertools
import random
import secrets
import time
import uuid
from collections.abc import Callable
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.routing import Route

from server.access.roles import RouteTable
from server.replay.records import Context, Kind, Record
from tests.server.replay.engine import PureEngine, ask, make_app

CONTEXT = Context(1_700_000_000, "f" * 32)
USER = [{"role": "user", "content": "hi"}]
TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}

BODIES: dict[str, list[dict[str, Any]]] = {
    "/v1/chat/completions": [
        {"messages": USER, "max_tokens": 12, "n": 2},
        {"messages": USER, "max_tokens": 12, "n": 2, "stream": True, "logprobs": True},
    ],
    "/v1/completions": [
        {"prompt": ["a", "b"], "n": 2},
        {"prompt": ["a", "b"], "n": 2, "stream": True, "logprobs": 1},
    ],
    "/v1/responses": [
        {"input": "hi", "max_output_tokens": 12},
        {"input": "hi", "max_output_tokens": 12, "stream": True},
    ],
    "/v1/messages": [
        {"messages": USER, "max_tokens": 12},
        {"messages": USER, "max_tokens": 12, "stream": True},
    ],
    "/v1/messages/count_tokens": [{"messages": USER}],
    "/v1/responses/input_tokens": [{"input": "hi"}],
    "/v1/responses/compact": [{"input": "hi"}],
    "/v1/embeddings": [{"input": "hi"}],
    "/tokenize": [{"prompt": "hi"}],
    "/detokenize": [{"tokens": [7, 8]}],
}
"""A request or more for each route that makes or counts tokens.  Enter each new one."""


def inference_routes() -> list[str]:
    app, table = make_app(PureEngine()), RouteTable()
    assert isinstance(app, Starlette)
    routes = [r for r in app.routes if isinstance(r, Route) and "POST" in (r.methods or ())]
    rules = [(route.path, table.find("POST", route.path)) for route in routes]
    return [path for path, rule in rules if rule is not None and rule.inference]


def test_no_route_is_left_out() -> None:
    assert sorted(BODIES) == sorted(inference_routes())


@pytest.fixture
def moved(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Lets clocks and random numbers be others than before."""

    def move() -> None:
        ticks, now = itertools.count(1), time.time
        monkeypatch.setattr(time, "time", lambda: now() + 1e6 * next(ticks))
        monkeypatch.setattr(uuid, "uuid4", lambda: uuid.UUID(int=next(ticks)))
        monkeypatch.setattr(secrets, "token_hex", lambda size=8: f"{next(ticks):0{2 * size}x}")
        monkeypatch.setattr(secrets, "randbits", lambda bits: next(ticks))

    return move


@pytest.mark.parametrize(
    ("path", "body"), [(path, body) for path, bodies in BODIES.items() for body in bodies]
)
def test_the_same_events_make_the_same_bytes(
    path: str, body: dict[str, Any], moved: Callable[[], None]
) -> None:
    body = {"model": "tiny", **body}
    first = ask(make_app(PureEngine(random.Random(1))), path, body, CONTEXT)
    events = b"".join(r.encoded for r in first if r.kind is Kind.EVENT)
    moved()
    again = ask(make_app(PureEngine(random.Random(2))), path, body, CONTEXT, events)
    assert told(again) == told(first)
    assert first[-1].kind is Kind.END
    for _ in range(2):  # and the seeds and ids do not come from elsewhere
        anew = ask(make_app(PureEngine(random.Random(1))), path, body, CONTEXT)
        assert told(anew) == told(first)


def told(records: list[Record]) -> tuple[list[bytes], bytes]:
    """Head and body."""
    starts = [record.payload for record in records if record.kind is Kind.START]
    return starts, b"".join(record.payload for record in records if record.kind is Kind.BODY)
