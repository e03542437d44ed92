"""An answer on its way to one client, that stays alive while there is nothing to send."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import msgspec
from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from server.api.errors import Failure, failure_of, respond
from server.api.wire import to_json
from server.replay.records import Start

EVENT_STREAM = b"text/event-stream"
KEEP_ALIVE = b": keep-alive\n\n"
# Of a stream that begins before rank 0 has said anything.
_STREAM_HEAD = Start(
    200,
    [
        (b"cache-control", b"no-store"),
        (b"x-accel-buffering", b"no"),
        (b"content-type", EVENT_STREAM + b"; charset=utf-8"),
    ],
)
_NAMED_EVENTS = ("/v1/messages", "/v1/responses")  # whose clients go by the event's name
_PER_CONNECTION = frozenset((b"connection", b"transfer-encoding", b"date", b"server"))


class _Asked(msgspec.Struct):
    stream: bool | None = None


def wants_stream(body: bytes) -> bool:
    """Whether a request asks for events; what is no such request is for rank 0 to refuse."""
    try:
        return bool(msgspec.json.decode(body, type=_Asked).stream)
    except (msgspec.MsgspecError, RecursionError):  # nested deeper than any request
        return False


class Delivery:
    """Sends to one client.  Waiting for a slow one holds back whoever has more for it."""

    def __init__(self, scope: Scope, send: Send, interval: float) -> None:
        """`interval`: seconds of silence between two comments of a stream."""
        self.streams = False  # the client has asked for events
        self._scope, self._send, self._interval = scope, send, interval
        self._sending = asyncio.Lock()
        self._last = 0.0
        self._begun = False
        self._accepted = False
        self._early = False  # the head was sent before rank 0's was known
        self._failed: list[bytes] | None = None  # of the refusal that came after an early head
        self._stream = False
        self._boundary = True  # between two events
        self._ended = False

    @property
    def begun(self) -> bool:
        """Whether the client has the head of an answer."""
        return self._begun

    def accepted(self) -> None:
        """Rank 0 works at it: from now on a stream begins after some silence, whatever rank 0 will say."""
        self._accepted = True

    async def start(self, start: Start) -> None:
        """The head, once."""
        if self._early:
            if start.status != 200:
                self._failed = []
            return
        await self._head(start)

    async def body(self, data: bytes) -> None:
        if self._failed is not None:
            self._failed.append(data)
            return
        async with self._sending:
            self._boundary = data.endswith(b"\n\n")
            self._last = _now()
            await self._send({"type": "http.response.body", "body": data, "more_body": True})

    async def end(self) -> None:
        if self._failed is not None:
            await self._put(self._event(b"".join(self._failed)))
        self._ended = True
        async with self._sending:
            await self._send({"type": "http.response.body", "body": b""})

    async def fail(self, error: Exception, receive: Receive) -> None:
        """Tell the client of `error`, as far as that is still possible.

        A stream ends with an error event; any other body stays incomplete, which closes the connection.
        """
        if not self._begun:
            response = await respond(Request(self._scope), error)
            await response(self._scope, receive, self._send)
        elif self._stream and self._boundary and not self._ended:
            await self._put(
                self._event(to_json(self._body_of(failure_of(error, self._request_id))))
            )
            await self.end()

    @asynccontextmanager
    async def kept_alive(self) -> AsyncIterator[None]:
        """Comments flow meanwhile, while nothing else does."""
        comments = asyncio.create_task(self._comment())
        try:
            yield
        finally:
            comments.cancel()
            await asyncio.gather(comments, return_exceptions=True)

    async def _comment(self) -> None:
        self._last = _now()
        while True:
            await asyncio.sleep(self._last + self._interval - _now())
            if _now() < self._last + self._interval or self._ended:
                continue
            if self.streams and self._accepted and not self._begun:
                self._early = True
                await self._head(_STREAM_HEAD)
            if self._stream and self._boundary:
                await self._put(KEEP_ALIVE)
            self._last = _now()

    async def _head(self, start: Start) -> None:
        self._begun = True
        headers = [pair for pair in start.headers if pair[0].lower() not in _PER_CONNECTION]
        self._stream = _is_stream(headers)
        async with self._sending:
            await self._send(
                {"type": "http.response.start", "status": start.status, "headers": headers}
            )

    async def _put(self, event: bytes) -> None:
        async with self._sending:
            await self._send({"type": "http.response.body", "body": event, "more_body": True})

    def _event(self, body: bytes) -> bytes:
        named = self._scope["path"].startswith(_NAMED_EVENTS)
        return (b"event: error\n" if named else b"") + b"data: " + body + b"\n\n"

    def _body_of(self, failure: Failure) -> dict[str, object]:
        return failure.body_for(self._scope["path"], self._request_id)

    @property
    def _request_id(self) -> str:
        return str(self._scope["state"]["request_id"])


def _is_stream(headers: Sequence[tuple[bytes, bytes]]) -> bool:
    return any(
        name == b"content-type" and value.startswith(EVENT_STREAM) for name, value in headers
    )


def _now() -> float:
    return asyncio.get_running_loop().time()
