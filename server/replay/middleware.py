"""Answers a front door with the records of a response in place of the response itself."""

from __future__ import annotations

import asyncio

import structlog
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.api.errors import InvalidRequest, failure_of, respond
from server.api.wire import to_json
from server.replay.journal import Journal, entered, read_entries
from server.replay.records import (
    HEADER,
    KEPT_HEADER,
    MEDIA_TYPE,
    Context,
    JournalError,
    Kind,
    Record,
    Start,
    kept_length,
    kept_payload,
)

log = structlog.get_logger(__name__)


class JournalMiddleware:
    """Gives each request its context, and those that ask for it the journal.

    Whoever asks only says of its own request what was answered so far; it needs the same key as without.
    Below it must be the middlewares of request ids and access, above it the routes.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        asked = Headers(scope=scope).get(HEADER)
        if asked is None or scope["method"] != "POST":
            with entered(Context()):
                await self._app(scope, receive, send)
            return
        try:
            context, length = Context.parse(asked)
            before = kept_length(Headers(scope=scope).get(KEPT_HEADER))
            told, receive = await _split(receive, before + length)
            kept = kept_payload(told[:before]) if before else None
            entries = read_entries(told[before:])
        except JournalError as error:
            refusal = await respond(Request(scope), InvalidRequest(str(error)))
            await refusal(scope, receive, send)
            return
        response = _Response(send)
        journal = Journal(entries, response.emit, kept)
        with entered(context, journal):
            await response.run(self._app, _without_told(scope, before + length), receive, journal)


class _Response:
    """One response on its way out as records."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._out: list[bytes] = []
        self._flushed = asyncio.Event()
        self._started = False
        self._journal: Journal | None = None
        self._ready = asyncio.Event()

    def emit(self, record: Record) -> None:
        """Send a record soon, after those before it."""
        self._out.append(record.encoded)
        self._flushed.clear()
        self._ready.set()

    async def run(self, app: ASGIApp, scope: Scope, receive: Receive, journal: Journal) -> None:
        """Run the application, and end with END, or with BROKEN if the cluster failed under it."""
        self._journal = journal
        headers = [(b"content-type", MEDIA_TYPE.encode())]
        await self._send({"type": "http.response.start", "status": 200, "headers": headers})
        writer = asyncio.create_task(self._write())
        try:
            try:
                await app(scope, receive, self._take)
            except Exception as error:
                self._fail(error, scope["state"]["request_id"])
                raise
            finally:
                if journal.broken is not None:
                    self.emit(Record(Kind.BROKEN, journal.broken.encode()))
                await self._drain(writer)
        finally:
            writer.cancel()
            await asyncio.gather(writer, return_exceptions=True)
        await self._send({"type": "http.response.body", "body": b""})

    async def _take(self, message: Message) -> None:
        """A message of the application; nothing more is said of a response that the cluster broke."""
        if self._journal is not None and self._journal.broken is not None:
            return
        if message["type"] == "http.response.start":
            self._started = True
            self.emit(Start(message["status"], list(message.get("headers", ()))).record)
        elif message["type"] == "http.response.body":
            if message.get("body"):
                self.emit(Record(Kind.BODY, message["body"]))
            if not message.get("more_body", False):
                self.emit(Record(Kind.END))
        await self._flushed.wait()  # a slow reader holds back whoever makes the response

    def _fail(self, error: Exception, request_id: str) -> None:
        """A bug: final, since the same would happen again."""
        if not self._started:
            failure = failure_of(error, request_id)
            headers = [(b"content-type", b"application/json")]
            self.emit(Start(failure.status, headers).record)
            self.emit(Record(Kind.BODY, to_json(failure.body())))
            self.emit(Record(Kind.END))

    async def _write(self) -> None:
        while True:
            await self._ready.wait()
            self._ready.clear()
            out, self._out = self._out, []
            body = b"".join(out)
            if body:
                await self._send({"type": "http.response.body", "body": body, "more_body": True})
            if not self._out:
                self._flushed.set()

    async def _drain(self, writer: asyncio.Task[None]) -> None:
        """Wait until all is sent, or nobody takes it any more."""
        if not self._out and self._flushed.is_set():
            return
        flushed = asyncio.create_task(self._flushed.wait())
        await asyncio.wait({flushed, writer}, return_when=asyncio.FIRST_COMPLETED)
        flushed.cancel()


async def _split(receive: Receive, length: int) -> tuple[bytes, Receive]:
    """The first `length` bytes of a body, and what receives the rest.  Raises JournalError."""
    if not length:
        return b"", receive
    data, more = bytearray(), True
    while len(data) < length:
        if not more:
            raise JournalError("the body ends among what was told before")
        message = await receive()
        if message["type"] != "http.request":
            raise JournalError("the connection ends among what was told before")
        data += message.get("body", b"")
        more = message.get("more_body", False)
    rest: Message | None = {
        "type": "http.request",
        "body": bytes(data[length:]),
        "more_body": more,
    }

    async def receive_rest() -> Message:
        nonlocal rest
        if rest is None:
            return await receive()
        first, rest = rest, None
        return first

    return bytes(data[:length]), receive_rest


def _without_told(scope: Scope, length: int) -> Scope:
    """The request as its client sent it."""
    headers = []
    for name, value in scope["headers"]:
        if name in (HEADER.encode(), KEPT_HEADER.encode()):
            continue
        if name == b"content-length" and value.isdigit():
            headers.append((name, str(max(0, int(value) - length)).encode()))
        else:
            headers.append((name, value))
    return {**scope, "headers": headers}
