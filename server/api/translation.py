"""What the endpoints share that are translated to a chat request."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from starlette.requests import Request

from server.api.errors import InvalidRequest


@contextmanager
def renamed(names: Mapping[str, str]) -> Iterator[None]:
    """Let errors about the chat request name the fields of the request that came.

    names: from the first part of a chat field's path to what stands for it.
    """
    try:
        yield
    except InvalidRequest as error:
        first = (error.param or "").partition(".")[0]
        if first not in names:
            raise
        message = error.message
        if message.startswith(first):
            message = names[first] + message[len(first) :]
        # The place inside differs as well, so the field itself is all that can be said.
        raise InvalidRequest(message, param=names[first], code=error.code) from error


def owner_of(request: Request) -> str:
    """Whose request it is, for what is kept of it."""
    principal = getattr(request.state, "principal", None)
    return str(getattr(principal, "id", ""))
