"""Stored responses, kept here because rank 0 may not be there any more when somebody goes on from them.

Rank 0 tells of each when it is complete, and is given the one that a request names; the rest is answered here.
What was said in it is not read here: it may be long, and others wait for the same event loop.
"""

from __future__ import annotations

import msgspec
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.routing import Route
from starlette.types import Scope

from server.access.middleware import AccountMiddleware
from server.api.responses.store import PREVIOUS, ResponseStore, Stored
from server.api.responses.stored import stored_routes
from server.api.translation import owner_of
from server.replay.records import Kind, Record

_GOING_ON = ("/v1/responses", "/v1/responses/input_tokens")


class _Asked(msgspec.Struct):
    previous_response_id: str | None = None


class KeptResponses:
    """Of one front door."""

    def __init__(self) -> None:
        self.store = ResponseStore()

    def routes(self) -> list[Route]:
        """For an application whose state has `store` as `responses`."""
        return stored_routes([Middleware(AccountMiddleware)])

    def keep(self, payload: bytes, scope: Scope) -> None:
        """Take the record of a response to the request of `scope`.  Raises JournalError."""
        stored = Stored.decoded(payload)
        if stored.owner == owner_of(Request(scope)):
            self.store.put(stored)

    def wanted(self, scope: Scope, body: bytes) -> bytes:
        """The record of the response that a request goes on from; empty if it names none.

        Raises UnknownResponse.  What is no such request is for rank 0 to refuse.
        """
        if scope["path"] not in _GOING_ON:
            return b""
        try:
            named = msgspec.json.decode(body, type=_Asked).previous_response_id
        except (msgspec.MsgspecError, RecursionError):
            return b""
        if named is None:
            return b""
        stored = self.store.get(named, owner_of(Request(scope)), PREVIOUS)
        return Record(Kind.KEEP, stored.encoded).encoded
