"""A job as an HTTP response: one JSON document, or server-sent events.

A `Dialect` knows the shapes of one endpoint; everything about order, errors and disconnects is here.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Iterable
from contextlib import AsyncExitStack, aclosing
from typing import Any, Protocol

import structlog
from sse_starlette import EventSourceResponse, ServerSentEvent
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from pipeline.errors import PipelineError
from pipeline.request import FinishReason
from server.api.disconnect import unless_disconnected
from server.api.errors import ApiError, failure_of
from server.api.generation import Choice, Job, Piece
from server.api.wire import to_json

DONE = b"data: [DONE]\n\n"

Usage = dict[str, Any]  # the object `usage` of a response
log = structlog.get_logger(__name__)


class Dialect(Protocol):
    """The JSON of one endpoint."""

    def document(self, choices: list[Choice], usage: Usage) -> dict[str, Any]:
        """The whole response."""
        ...

    def opening(self) -> Iterable[dict[str, Any]]:
        """Chunks before any text."""
        ...

    def delta(self, piece: Piece) -> dict[str, Any]:
        """The chunk with the text and log probabilities of `piece`, without its finish reason."""
        ...

    def finish(self, index: int, reason: FinishReason) -> dict[str, Any]:
        """The last chunk of a choice."""
        ...

    def usage(self, usage: Usage) -> dict[str, Any] | None:
        """The chunk after all choices, None if it was not asked for."""
        ...


async def whole(request: Request, job: Job, dialect: Dialect) -> Response:
    """Run `job` to its end and answer with one document."""
    async with job:
        choices = await unless_disconnected(request.receive, job.collect())
    counts = usage_of(job, sum(choice.tokens for choice in choices))
    return Response(to_json(dialect.document(choices, counts)), media_type="application/json")


async def streamed(request: Request, job: Job, dialect: Dialect, keep_alive: float) -> Response:
    """Answer with events.  The first piece is awaited here for `keep_alive` seconds, so that an early error
    still has a status of its own; later ones are events.
    """
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(job)
        await unless_disconnected(request.receive, job.start(keep_alive))
        events = _events(job, dialect, request.state.request_id)
        return _JobResponse(events, stack.pop_all(), keep_alive)
    raise AssertionError("an exit stack does not swallow exceptions")


class _JobResponse(EventSourceResponse):
    """Events of a job that is closed with the response, even if the first event was never sent."""

    def __init__(
        self, events: AsyncIterator[bytes], owned: AsyncExitStack, keep_alive: float
    ) -> None:
        super().__init__(events, ping=keep_alive, ping_message_factory=_keep_alive, sep="\n")
        self._owned = owned

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with self._owned:
            await super().__call__(scope, receive, send)


def _keep_alive() -> ServerSentEvent:
    return ServerSentEvent(comment="keep-alive", sep="\n")


async def _events(job: Job, dialect: Dialect, request_id: str) -> AsyncGenerator[bytes, None]:
    try:
        async with aclosing(_chunks(job, dialect)) as chunks:
            async for chunk in chunks:
                yield _event(chunk)
    except (ApiError, PipelineError) as error:
        log.warning("stream failed", request_id=request_id, error=str(error))
        yield _event(failure_of(error, request_id).body())
    except Exception as error:
        yield _event(failure_of(error, request_id).body())
        raise
    yield DONE


async def _chunks(job: Job, dialect: Dialect) -> AsyncGenerator[dict[str, Any], None]:
    for chunk in dialect.opening():
        yield chunk
    tokens = [0] * job.size
    async with aclosing(job.pieces()) as pieces:
        async for piece in pieces:
            tokens[piece.index] = piece.tokens
            if piece.text or piece.spans:
                yield dialect.delta(piece)
            if piece.finish is not None:
                yield dialect.finish(piece.index, piece.finish)
    last = dialect.usage(usage_of(job, sum(tokens)))
    if last is not None:
        yield last


def _event(chunk: dict[str, Any]) -> bytes:
    return b"data: " + to_json(chunk) + b"\n\n"


def usage_of(job: Job, completion_tokens: int) -> Usage:
    return {
        "prompt_tokens": job.prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": job.prompt_tokens + completion_tokens,
        "prompt_tokens_details": {"cached_tokens": job.cached_tokens},
    }
