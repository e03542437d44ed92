"""Who asks: what middlewares have found out about the HTTP request at hand, for code far below the handlers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from server.access.principal import ANYBODY, Principal

_state: ContextVar[Mapping[str, Any]] = ContextVar("request_state")


@dataclass(frozen=True)
class Caller:
    """The request that a piece of work belongs to."""

    request_id: str = ""
    principal: Principal = ANYBODY
    traceparent: str = ""  # W3C trace context, as it was given


@contextmanager
def request_state(state: Mapping[str, Any]) -> Iterator[None]:
    """For what runs inside, tasks included: `state` of the ASGI scope, which later middlewares add to."""
    token = _state.set(state)
    try:
        yield
    finally:
        _state.reset(token)


def caller() -> Caller:
    """Of the current task; an empty one outside of any request."""
    state = _state.get({})
    return Caller(
        request_id=state.get("request_id", ""),
        principal=state.get("principal", ANYBODY),
        traceparent=state.get("traceparent", ""),
    )
