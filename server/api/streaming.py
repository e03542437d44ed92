"""A job as an HTTP response: one JSON document, or server-sent events.

A `Dialect` knows the shapes of one endpoint; everything about order, errors and disconnects is here.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Iterable
from contextlib import AsyncExitStack, aclosing
from typing import Any, Protocol

import structlog
from sse_starlette import EventSourceResponse, ServerSentEvent
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from pipeline.errors import PipelineError
from server.access.redaction import loggable
from server.api.disconnect import unless_disconnected
from server.api.errors import ApiError, Failure, failure_of
from server.api.generation import Choice, Job, Piece
from server.api.wire import to_json
from server.observe.errors import count_error
from server.replay.journal import is_journaled

DONE = b"data: [DONE]\n\n"
NEVER = 1e9  # seconds

Events = Iterable[dict[str, Any]]
Usage = dict[str, Any]  # the object `usage` of a response
log = structlog.get_logger(__name__)


class Dialect(Protocol):
    """The JSON of one endpoint."""

    def document(self, choices: list[Choice], usage: Usage) -> dict[str, Any]:
        """The whole response."""
        ...

    def opening(self) -> Events:
        """Before any text."""
        ...

    def delta(self, piece: Piece) -> Events:
        """The text and log probabilities of `piece`, without its finish reason."""
        ...

    def finish(self, piece: Piece) -> Events:
        """The end of the choice whose last piece this is."""
        ...

    def closing(self, usage: Usage) -> Events:
        """After all choices."""
        ...

    def failure(self, failure: Failure) -> Events:
        """An error after the stream has begun; nothing but `LAST` follows."""
        ...

    def encode(self, event: dict[str, Any]) -> bytes:
        """An event as it is sent; `data_event` or `named_event`."""
        ...

    LAST: bytes  # what ends every stream


async def whole(request: Request, job: Job, dialect: Dialect) -> Response:
    """Run `job` to its end and answer with one document."""
    async with job:
        choices = await unless_disconnected(request.receive, job.collect())
    counts = usage_of(job, sum(choice.tokens for choice in choices))
    return Response(to_json(dialect.document(choices, counts)), media_type="application/json")


async def streamed(request: Request, job: Job, dialect: Dialect, keep_alive: float) -> Response:
    """Answer with events.  The first piece is awaited here for `keep_alive` seconds, so that an early error
    still has a status of its own; later ones are events.  A front door keeps the
    connections of its clients alive by itself.
    """
    if is_journaled():
        keep_alive = NEVER
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(job)
        await unless_disconnected(request.receive, job.start(keep_alive))
        events = _events(job, dialect, request.state.request_id)
        return _JobResponse(events, stack.pop_all(), job.overrun, keep_alive)
    raise AssertionError("an exit stack does not swallow exceptions")


class _JobResponse(EventSourceResponse):
    """Events of a job that is closed with the response, even if the first event was never sent."""

    def __init__(
        self,
        events: AsyncIterator[bytes],
        owned: AsyncExitStack,
        overrun: asyncio.Event,
        keep_alive: float,
    ) -> None:
        super().__init__(events, ping=keep_alive, ping_message_factory=_keep_alive, sep="\n")
        self._owned, self._overrun = owned, overrun

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with self._owned:
            answering = asyncio.create_task(super().__call__(scope, receive, send))
            overrun = asyncio.create_task(self._overrun.wait())
            try:
                await asyncio.wait({answering, overrun}, return_when=asyncio.FIRST_COMPLETED)
                if answering.done():
                    answering.result()
            finally:
                # A response that is not complete closes the connection.
                answering.cancel()
                overrun.cancel()
                await asyncio.gather(answering, overrun, return_exceptions=True)


def _keep_alive() -> ServerSentEvent:
    return ServerSentEvent(comment="keep-alive", sep="\n")


async def _events(job: Job, dialect: Dialect, request_id: str) -> AsyncGenerator[bytes, None]:
    try:
        async with aclosing(_progress(job, dialect)) as progress:
            async for event in progress:
                yield dialect.encode(event)
    except (ApiError, PipelineError) as error:
        log.warning("stream failed", request_id=request_id, error=loggable(error))
        for event in dialect.failure(_counted(error, request_id)):
            yield dialect.encode(event)
    except Exception as error:
        for event in dialect.failure(_counted(error, request_id)):
            yield dialect.encode(event)
        raise
    if dialect.LAST:
        yield dialect.LAST


async def _progress(job: Job, dialect: Dialect) -> AsyncGenerator[dict[str, Any], None]:
    for event in dialect.opening():
        yield event
    tokens = [0] * job.size
    async with aclosing(job.pieces()) as pieces:
        async for piece in pieces:
            tokens[piece.index] = piece.tokens
            if piece.parts or piece.spans:
                for event in dialect.delta(piece):
                    yield event
            if piece.finish is not None:
                for event in dialect.finish(piece):
                    yield event
    for event in dialect.closing(usage_of(job, sum(tokens))):
        yield event


def _counted(error: Exception, request_id: str) -> Failure:
    failure = failure_of(error, request_id)
    count_error(failure.type, failure.code)
    return failure


def data_event(event: dict[str, Any]) -> bytes:
    """As Chat Completions and Completions have it."""
    return b"data: " + to_json(event) + b"\n\n"


def named_event(event: dict[str, Any]) -> bytes:
    """As Responses and Messages have it: named by its type."""
    return b"event: " + str(event["type"]).encode() + b"\n" + data_event(event)


def usage_of(job: Job, completion_tokens: int) -> Usage:
    usage = {
        "prompt_tokens": job.prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": job.prompt_tokens + completion_tokens,
        "prompt_tokens_details": {"cached_tokens": job.cached_tokens},
    }
    if (reasoning := job.reasoning_tokens) is not None:
        usage["completion_tokens_details"] = {"reasoning_tokens": reasoning}
    return usage
