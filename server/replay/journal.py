"""The engine's events of one response: told to the front door as they are used, and used again after a restart.

Events of several choices are used one at a time, each one's bytes made before the next is taken.  So their
order alone decides the order of the bytes, and repeating it repeats them.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import aclosing, contextmanager
from contextvars import ContextVar

import msgspec

from pipeline.errors import EngineFault, EngineStopped, TransportError
from pipeline.request import GenerationRequest, Generator, TokenEvent
from server.api.errors import InvalidRequest
from server.replay.records import (
    MAX_KEPT,
    Context,
    JournalError,
    Kind,
    Record,
    RecordReader,
)

CLUSTER_FAULTS = (EngineFault, EngineStopped, TransportError)
"""Errors that say nothing of the request: it goes on when the cluster works again."""

Emit = Callable[[Record], None]

_context: ContextVar[Context] = ContextVar("request_context")
_journal: ContextVar[Journal | None] = ContextVar("journal")


class Entry(msgspec.Struct, frozen=True, array_like=True):
    """Payload of EVENT: an event, and of which choice."""

    index: int
    event: TokenEvent

    @property
    def record(self) -> Record:
        return Record(Kind.EVENT, msgspec.msgpack.encode(self))


def read_entries(data: bytes) -> list[Entry]:
    """Entries from their records, one after the other.  Raises JournalError."""
    reader = RecordReader()
    entries = []
    for record in reader.feed(data):
        if record.kind is not Kind.EVENT:
            raise JournalError(f"a record {record.kind.name} stands among the events")
        try:
            entries.append(msgspec.msgpack.decode(record.payload, type=Entry))
        except msgspec.MsgspecError as error:
            raise JournalError(f"event {len(entries)}: {error}") from error
    if not reader.complete:
        raise JournalError("the last event is cut off")
    return entries


def context() -> Context:
    """Of the request at hand; a fresh one outside of any."""
    return _context.get(None) or Context()


def is_journaled() -> bool:
    """Whether the response at hand goes to a front door, which keeps the connection of its client alive."""
    return _journal.get(None) is not None


def keep(payload: bytes) -> bool:
    """Have the front door keep what a later request may go on from; False if the response goes to none."""
    journal = _journal.get(None)
    if journal is None:
        return False
    assert len(payload) <= MAX_KEPT, "else it could not be sent with a later request"
    journal.keep(payload)
    return True


def kept() -> bytes | None:
    """What the front door has kept of the response from which the request at hand goes on."""
    journal = _journal.get(None)
    return None if journal is None else journal.kept


@contextmanager
def entered(context: Context, journal: Journal | None = None) -> Iterator[None]:
    """For what runs inside, tasks included."""
    tokens = _context.set(context), _journal.set(journal)
    try:
        yield
    finally:
        _context.reset(tokens[0])
        _journal.reset(tokens[1])


def events_of(
    generator: Generator, request: GenerationRequest, index: int, size: int, vocab_size: int
) -> AsyncGenerator[TokenEvent, None]:
    """The events of choice `index` of `size`, those of the journal first.  Raises InvalidRequest."""
    journal = _journal.get(None)
    if journal is None:
        return generator.generate(request)
    journal.check(size, vocab_size)
    return journal.generate(generator, request, index)


class Journal:
    """Of one request.  `broken` tells that the cluster failed under it."""

    def __init__(
        self, entries: Sequence[Entry], emit: Emit, kept_before: bytes | None = None
    ) -> None:
        self._entries, self._emit, self.kept = entries, emit, kept_before
        self._used = 0  # entries
        self._left: set[int] = set()  # choices that ended before all of their entries were used
        self._checked = False
        self._moved = asyncio.Condition()
        self._one_at_a_time = asyncio.Lock()
        self.broken: str | None = None

    def keep(self, payload: bytes) -> None:
        """See the function `keep`."""
        self._emit(Record(Kind.KEEP, payload))

    def check(self, size: int, vocab_size: int) -> None:
        """Raises InvalidRequest for entries that a request of `size` choices can't have."""
        if self._checked:
            return
        ended = set()
        for number, entry in enumerate(self._entries):
            if not 0 <= entry.index < size:
                raise InvalidRequest(f"event {number} is of choice {entry.index} of {size}")
            if entry.index in ended:
                raise InvalidRequest(f"event {number} comes after the end of choice {entry.index}")
            for token in _tokens_of(entry.event):
                if not 0 <= token < vocab_size:
                    raise InvalidRequest(f"event {number}: there is no token {token}")
            if entry.event.cached < 0:
                raise InvalidRequest(f"event {number}: {entry.event.cached} tokens can't be cached")
            if entry.event.finish is not None:
                ended.add(entry.index)
        self._checked = True

    async def generate(
        self, generator: Generator, request: GenerationRequest, index: int
    ) -> AsyncGenerator[TokenEvent, None]:
        """See `events_of`."""
        known = [entry.event for entry in self._entries if entry.index == index]
        if len(known) > request.max_tokens:
            await self._leave(index)
            raise InvalidRequest(f"choice {index} has more than {request.max_tokens} tokens")
        try:
            for event in known:
                await self._turn_of(index)
                try:
                    yield event
                finally:
                    await self._move_on()
        except BaseException:
            await self._leave(index)
            raise
        if known and known[-1].finish is not None:
            return
        emitted = request.emitted + tuple(event.token for event in known)
        if len(emitted) >= request.max_tokens:
            raise InvalidRequest(f"choice {index} has had all of its {request.max_tokens} tokens")
        await self._all_used()
        request = msgspec.structs.replace(request, emitted=emitted)
        try:
            async with aclosing(generator.generate(request)) as events:
                async for event in events:
                    async with self._one_at_a_time:
                        self._emit(Entry(index, event).record)
                        yield event
        except CLUSTER_FAULTS as error:
            self.broken = str(error)
            raise

    async def _turn_of(self, index: int) -> None:
        async with self._moved:
            await self._moved.wait_for(lambda: self._entries[self._used].index == index)

    async def _move_on(self) -> None:
        self._used += 1
        await self._skip()

    async def _leave(self, index: int) -> None:
        """Nobody waits for the rest of what is told of choice `index`."""
        self._left.add(index)
        await self._skip()

    async def _skip(self) -> None:
        while self._used < len(self._entries) and self._entries[self._used].index in self._left:
            self._used += 1
        async with self._moved:
            self._moved.notify_all()

    async def _all_used(self) -> None:
        async with self._moved:
            await self._moved.wait_for(lambda: self._used >= len(self._entries))


def _tokens_of(event: TokenEvent) -> Iterator[int]:
    yield event.token
    if event.logprobs is not None:
        yield from (token for token, _ in event.logprobs.top)
