"""Running the sequences of one HTTP request, and what comes of them.

Each sequence has a task of its own that takes tokens from the engine, turns them into text and puts pieces into
one bounded queue.  Cancelling the task closes the engine's iterator, which is how a sequence is cancelled.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import ExitStack, aclosing, contextmanager
from dataclasses import dataclass, field
from types import TracebackType

import msgspec
import structlog

from pipeline.errors import EngineFault
from pipeline.request import FinishReason, GenerationRequest, Generator, TokenEvent
from server.access import account
from server.api.errors import Overloaded
from server.api.reading import Reader, TurnReader
from server.api.reasoning import reasons
from server.api.service import ServedModel, Service
from server.api.text import Delta, Detokenizer, Span, TextStream
from server.api.turn_parts import TurnPart
from server.replay.journal import events_of

QUEUED_PIECES = 256  # of all sequences of a request
# Seconds that a client may be that far behind without a break.  Until then its tokens wait in the engine.
PATIENCE_WITH_READER_S = 30.0
CANCEL_TIMEOUT_S = 5.0

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class SequenceSpec:
    """One choice of the response: what to ask of the engine and how to make text of it."""

    request: GenerationRequest
    stops: tuple[str, ...] = ()
    continues_prompt: bool = False  # the output is the prompt's continuation, not a text of its own
    visible: frozenset[int] = frozenset()  # special tokens that the text shows
    reader: Callable[[str], Reader] = lambda _: TurnReader()  # for the sequence with this id

    def text_stream(self, model: ServedModel) -> TextStream:
        hidden = model.special_tokens - self.visible if self.visible else frozenset()

        def decode(ids: Sequence[int]) -> str:
            if self.visible:
                ids = [token for token in ids if token not in hidden]
            return model.tokenizer.decode(
                ids, skip_special_tokens=not self.visible, clean_up_tokenization_spaces=False
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
    logprob: float = 0.0  # sum over these tokens, where the engine was asked for log probabilities
    stop: str | None = None  # the stop string that ended it
    parts: tuple[TurnPart, ...] = ()  # what the text says, as far as that is certain


@dataclass
class Choice:
    """A whole choice, collected from its pieces."""

    index: int
    text: str = ""
    spans: list[Span] = field(default_factory=list)
    finish: FinishReason | None = None
    tokens: int = 0
    logprob: float = 0.0
    stop: str | None = None
    parts: list[TurnPart] = field(default_factory=list)

    @property
    def mean_logprob(self) -> float:
        """Of its tokens, the end token included; the worst there is without any."""
        return self.logprob / self.tokens if self.tokens else -math.inf


class ReaderTooSlow(Exception):
    """The client takes its stream more slowly than it is made, for longer than is borne."""


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
        copies: int = 1,
    ) -> None:
        """`copies`: how many specs in a row have the same prompt, which counts once."""
        self._service = service
        self._model = model
        self._generator = generator
        self._specs, self._copies = specs, copies
        self.overrun = (
            asyncio.Event()
        )  # the client reads too slowly, and the sequences are given up
        self._behind_since: float | None = None
        self._queue: asyncio.Queue[Piece | Exception] = asyncio.Queue(QUEUED_PIECES)
        self._first: Piece | None = None
        self._cached = [0] * len(specs)
        self._reasoned = [0] * len(specs)
        self._made = [0] * len(specs)  # tokens
        self._tasks: list[asyncio.Task[None]] = []
        self._places = ExitStack()

    @property
    def size(self) -> int:
        return len(self._specs)

    @property
    def prompt_tokens(self) -> int:
        return sum(len(spec.request.prompt) for spec in self._specs[:: self._copies])

    @property
    def cached_tokens(self) -> int:
        """Prompt tokens that the engine did not have to prefill; known with the first piece of each choice."""
        # The copies of a prompt start from the first one's caches; what that one found is what was saved.
        return sum(self._cached[:: self._copies])

    @property
    def reasoning_tokens(self) -> int | None:
        """Tokens before the answers; None for a model that does not think."""
        return sum(self._reasoned) if reasons(self._model.tokenizer) else None

    async def __aenter__(self) -> Job:
        with ExitStack() as places:
            # What the key may use comes first: it says more than that the server is full.
            places.enter_context(self._accounted())
            places.enter_context(self._service.admitted(self.size))
            self._places = places.pop_all()
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

    @contextmanager
    def _accounted(self) -> Iterator[None]:
        """Charge the key of this request.  Raises RateLimited."""
        asked = sum(spec.request.max_tokens for spec in self._specs)
        holding = account.current().start(self.size, self.prompt_tokens, asked)
        try:
            yield
        finally:
            holding.end(sum(self._made))

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
                choice.logprob, choice.stop = piece.logprob, piece.stop
                choice.parts.extend(piece.parts)
        for choice, text in zip(choices, texts, strict=True):
            choice.text = "".join(text)
        return choices

    async def _run(self, index: int, spec: SequenceSpec) -> None:
        try:
            await self._pump(index, spec)
        except ReaderTooSlow:
            log.warning(
                "a stream is cancelled: its client reads too slowly", sequence=spec.request.id
            )
            self.overrun.set()
        except Exception as error:
            account.current().failed = True  # a stream that has begun keeps its status
            await self._queue.put(error)
            raise

    async def _pump(self, index: int, spec: SequenceSpec) -> None:
        stream, reader = spec.text_stream(self._model), spec.reader(spec.request.id)
        with_logprobs = spec.request.params.logprobs >= 0
        request = msgspec.structs.replace(spec.request, tenant=account.current().tenant)
        # Closing them cancels the sequence.
        events = events_of(self._generator, request, index, self.size, self._model.vocab_size)
        async with aclosing(events):
            event = await self._first_event(events, spec)
            self._cached[index] = event.cached
            logprob = 0.0
            while True:
                delta = stream.push(event)
                self._made[index] = stream.tokens
                spans = delta.spans if with_logprobs else ()
                logprob += event.logprobs.chosen if event.logprobs else 0.0
                parts = self._read(index, reader, delta, stream.tokens)
                if delta.text or spans or delta.finish:
                    piece = Piece(
                        index,
                        delta.text,
                        spans,
                        delta.finish,
                        stream.tokens,
                        logprob,
                        stream.stop,
                        parts,
                    )
                    await self._put(piece)
                if delta.finish:
                    self._log_content(spec, stream)
                    self._service.on_finish(spec.request.id, delta.finish)
                    return
                event = await _next_event(events, spec)

    def _read(self, index: int, reader: Reader, delta: Delta, tokens: int) -> tuple[TurnPart, ...]:
        if reader.thinking:
            self._reasoned[index] = tokens
        parts = reader.push(delta.text)
        return parts if delta.finish is None else (*parts, *reader.flush())

    async def _put(self, piece: Piece) -> None:
        """Queue a piece.  Raises ReaderTooSlow when the queue has been full for too long without a break."""
        if not self._queue.full():
            self._behind_since = None
            self._queue.put_nowait(piece)
            return
        now = asyncio.get_running_loop().time()
        if self._behind_since is None:
            self._behind_since = now
        patience = self._behind_since + PATIENCE_WITH_READER_S - now
        try:
            await asyncio.wait_for(self._queue.put(piece), patience)
        except asyncio.TimeoutError:
            raise ReaderTooSlow from None

    def _log_content(self, spec: SequenceSpec, stream: TextStream) -> None:
        """Only where access.log_prompts is set: nothing else writes what people say into a log."""
        if self._service.log_prompts:
            prompt = self._model.tokenizer.decode(spec.request.prompt)
            log.info("answered", sequence=spec.request.id, prompt=prompt, output=stream.text)

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
