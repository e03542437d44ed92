"""Running the sequences of one HTTP request, and what comes of them.

Each sequence has a task of its own that takes tokens from the engine, turns them into text and puts pieces into
one bounded queue.  Cancelling the task closes the engine's iterator, which is how a sequence is cancelled.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import ExitStack, aclosing
from dataclasses import dataclass, field
from types import TracebackType

import structlog

from pipeline.errors import EngineFault
from pipeline.request import FinishReason, GenerationRequest, Generator, TokenEvent
from server.api.errors import Overloaded
from server.api.service import ServedModel, Service
from server.api.text import Detokenizer, Span, TextStream

QUEUED_PIECES = 64  # of all sequences of a request; a slow reader holds back the tasks, not memory
CANCEL_TIMEOUT_S = 5.0

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class SequenceSpec:
    """One choice of the response: what to ask of the engine and how to make text of it."""

    request: GenerationRequest
    stops: tuple[str, ...] = ()
    continues_prompt: bool = False  # the output is the prompt's continuation, not a text of its own

    def text_stream(self, model: ServedModel) -> TextStream:
        def decode(ids: Sequence[int]) -> str:
            return model.tokenizer.decode(
                ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
            )

        context = self.request.prompt if self.continues_prompt else ()
        return TextStream(Detokenizer(decode, context), self.stops, self.request.params.min_tokens)


@dataclass(frozen=True)
class Piece:
    """Progress of one choice.  Nothing follows a piece with a finish reason."""

    index: int
    text: str
    spans: tuple[Span, ...]
    finish: FinishReason | None
    tokens: int  # generated so far


@dataclass
class Choice:
    """A whole choice, collected from its pieces."""

    index: int
    text: str = ""
    spans: list[Span] = field(default_factory=list)
    finish: FinishReason | None = None
    tokens: int = 0


class Job:
    """The sequences of one HTTP request, as an async context manager and an iterator of their pieces.

    Leaving the context cancels what still runs.  The first error of any sequence is raised by `start` or by the
    iteration; besides the engine's own errors that is Overloaded, if a sequence got no token in time.
    """

    def __init__(
        self,
        service: Service,
        model: ServedModel,
        generator: Generator,
        specs: Sequence[SequenceSpec],
    ) -> None:
        self._service = service
        self._model = model
        self._generator = generator
        self._specs = specs
        self._queue: asyncio.Queue[Piece | Exception] = asyncio.Queue(QUEUED_PIECES)
        self._first: Piece | None = None
        self._cached = [0] * len(specs)
        self._tasks: list[asyncio.Task[None]] = []
        self._places = ExitStack()

    @property
    def size(self) -> int:
        return len(self._specs)

    @property
    def prompt_tokens(self) -> int:
        return sum(len(spec.request.prompt) for spec in self._specs)

    @property
    def cached_tokens(self) -> int:
        """Prompt tokens that the engine did not have to prefill; known with the first piece of each choice."""
        return sum(self._cached)

    async def __aenter__(self) -> Job:
        self._places.enter_context(self._service.admitted(self.size))
        self._tasks = [
            asyncio.create_task(self._run(index, spec), name=spec.request.id)
            for index, spec in enumerate(self._specs)
        ]
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for task in self._tasks:
            task.cancel()
        try:
            _, stuck = await asyncio.wait(self._tasks, timeout=CANCEL_TIMEOUT_S)
            for task in stuck:
                log.error("the engine does not give up a sequence", sequence=task.get_name())
        finally:
            self._places.close()

    async def start(self, patience: float) -> None:
        """Wait for the first piece, at most `patience` seconds; raises if a sequence failed."""
        try:
            first = await asyncio.wait_for(self._queue.get(), patience)
        except asyncio.TimeoutError:
            return
        self._first = _or_raise(first)

    async def pieces(self) -> AsyncGenerator[Piece, None]:
        unfinished = self.size
        while unfinished:
            piece, self._first = self._first, None
            if piece is None:
                # No deadline here: the engine's own step deadline ends a sequence that makes no progress.
                piece = _or_raise(await self._queue.get())
            unfinished -= piece.finish is not None
            yield piece

    async def collect(self) -> list[Choice]:
        """All choices, complete."""
        choices = [Choice(index) for index in range(self.size)]
        texts: list[list[str]] = [[] for _ in choices]
        async with aclosing(self.pieces()) as pieces:
            async for piece in pieces:
                choice = choices[piece.index]
                texts[piece.index].append(piece.text)
                choice.spans.extend(piece.spans)
                choice.finish, choice.tokens = piece.finish, piece.tokens
        for choice, text in zip(choices, texts, strict=True):
            choice.text = "".join(text)
        return choices

    async def _run(self, index: int, spec: SequenceSpec) -> None:
        try:
            await self._pump(index, spec)
        except Exception as error:
            await self._queue.put(error)
            raise

    async def _pump(self, index: int, spec: SequenceSpec) -> None:
        stream = spec.text_stream(self._model)
        with_logprobs = spec.request.params.logprobs >= 0
        events = self._generator.generate(spec.request)
        assert isinstance(events, AsyncGenerator)  # closing it cancels the sequence
        async with aclosing(events):
            event = await self._first_event(events, spec)
            self._cached[index] = event.cached
            while True:
                delta = stream.push(event)
                spans = delta.spans if with_logprobs else ()
                if delta.text or spans or delta.finish:
                    await self._queue.put(
                        Piece(index, delta.text, spans, delta.finish, stream.tokens)
                    )
                if delta.finish:
                    return
                event = await _next_event(events, spec)

    async def _first_event(
        self, events: AsyncGenerator[TokenEvent, None], spec: SequenceSpec
    ) -> TokenEvent:
        limit = self._service.first_token_timeout
        try:
            return await asyncio.wait_for(_next_event(events, spec), limit)
        except asyncio.TimeoutError as error:
            raise Overloaded(f"No token was made within {limit:g} seconds.") from error


async def _next_event(events: AsyncGenerator[TokenEvent, None], spec: SequenceSpec) -> TokenEvent:
    try:
        return await anext(events)
    except StopAsyncIteration:
        raise EngineFault(f"sequence {spec.request.id} ended without a finish reason") from None


def _or_raise(item: Piece | Exception) -> Piece:
    if isinstance(item, Exception):
        raise item
    return item
