"""Errors of the HTTP API, counted where they become responses."""

from __future__ import annotations

from prometheus_client import Counter

from server.observe.registry import PREFIX, REGISTRY

_ERRORS = Counter(
    PREFIX + "request_errors",
    "Responses that were errors, and streams that ended with one.",
    ["type", "code"],
    registry=REGISTRY,
)
_ERRORS.labels("server_error", "internal_error")  # the one to watch is there from the start


def count_error(kind: str, code: str | None) -> None:
    """An error body with this type and code is on its way."""
    _ERRORS.labels(kind, code or "").inc()
