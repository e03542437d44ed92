"""Identical sequences in flight, made once (`api_gateway.deduplicate`).

It is the work of the engine that is shared, not an answer: each request is let in, counted, charged, written
down and told in its own words, as if it had the engine for itself.  Only those of one tenant share.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from hashlib import blake2b

import msgspec
from prometheus_client import Counter

from pipeline.errors import EngineStopped, RequestCancelled
from pipeline.request import GenerationRequest, Generator, TokenEvent
from server.observe.registry import PREFIX, REGISTRY

COALESCED = Counter(
    f"{PREFIX}requests_coalesced",
    "Sequences that had their tokens from an identical one in flight.",
    registry=REGISTRY,
)


def key_of(request: GenerationRequest) -> bytes:
    """Equal for sequences that get the same tokens.  A seed that nobody named is another one each time."""
    params = request.params
    params = msgspec.structs.replace(
        params,
        seed=params.seed if params.temperature else 0,
        logit_bias=dict(sorted(params.logit_bias.items())),
    )
    same = msgspec.structs.replace(request, id="", origin="", trace="", params=params)
    return blake2b(msgspec.msgpack.encode(same), digest_size=16).digest()


class _Source:
    """A sequence at the engine, and those who have its tokens: from the first on, whenever they came."""

    def __init__(self, sequence: str) -> None:
        self.sequence = sequence  # as the engine calls it: after the request that came first
        self.events: list[TokenEvent] = []
        self.error: Exception | None = None
        self.ended = False
        self.readers: set[_Reader] = set()
        self.task: asyncio.Task[None] | None = None

    def tell(self) -> None:
        for reader in self.readers:
            reader.more.set()


class _Reader:
    def __init__(self, request: str) -> None:
        self.request = request
        self.more = asyncio.Event()
        self.cancelled = False


class Sharing:
    """A Generator over another one.  In one asyncio loop."""

    def __init__(self, inner: Generator) -> None:
        self._inner = inner
        self._joinable: dict[bytes, _Source] = {}
        self._sources: set[_Source] = set()  # that somebody reads

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[TokenEvent, None]:
        """See pipeline.request.Generator."""
        source, reader = self._join(request), _Reader(request.id)
        source.readers.add(reader)
        told = 0
        try:
            while True:
                reader.more.clear()
                while told < len(source.events) and not reader.cancelled:
                    told += 1
                    yield source.events[told - 1]
                if reader.cancelled:
                    raise RequestCancelled("The request was cancelled.")
                if source.ended and told == len(source.events):
                    if source.error is not None:
                        raise source.error
                    return
                await reader.more.wait()
        finally:
            source.readers.discard(reader)
            if not source.readers:
                await self._give_up(source)

    def cancel(self, request: str) -> None:
        """End one request; its sequence goes on if others have it too."""
        for source in self._sources:
            for reader in source.readers:
                if reader.request == request:
                    reader.cancelled = True
                    reader.more.set()

    def admitted(self, sequences: frozenset[str]) -> frozenset[str]:
        """All requests whose sequences are among `sequences`."""
        return frozenset(
            reader.request
            for source in self._sources
            if source.sequence in sequences
            for reader in source.readers
        )

    def _join(self, request: GenerationRequest) -> _Source:
        key = key_of(request)
        source = self._joinable.get(key)
        if source is not None:
            COALESCED.inc()
            return source
        source = self._joinable[key] = _Source(request.id)
        self._sources.add(source)
        source.task = asyncio.create_task(self._make(key, request, source), name=request.id)
        return source

    async def _make(self, key: bytes, request: GenerationRequest, source: _Source) -> None:
        try:
            async with aclosing(self._inner.generate(request)) as events:
                async for event in events:
                    source.events.append(event)
                    source.tell()
        except asyncio.CancelledError:
            if source.readers:  # theirs is no whole answer
                source.error = EngineStopped("the server is stopping")
            raise
        except Exception as error:
            source.error = error
            if not source.readers:
                raise
        finally:
            source.ended = True
            if self._joinable.get(key) is source:
                del self._joinable[key]
            source.tell()

    async def _give_up(self, source: _Source) -> None:
        """Nobody has its tokens any more; closing the engine's iterator is what cancels it."""
        self._sources.discard(source)
        for key, joinable in tuple(self._joinable.items()):
            if joinable is source:
                del self._joinable[key]
        assert source.task is not None
        source.task.cancel()
        await asyncio.gather(source.task, return_exceptions=True)
