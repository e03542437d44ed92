"""Requests in flight and what they took, seen from the engine's doorstep."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Protocol

import msgspec

from pipeline.errors import PipelineError
from pipeline.request import FinishReason, GenerationRequest, Generator, TokenEvent
from server.observe.context import caller
from server.observe.flight import Flight
from server.observe.latency import Latencies

RATE_SECONDS = 5  # over which tokens per second are counted
RECENT = 200  # latest requests whose time to first token is kept for display


class TokenRate:
    """Tokens per second of the last few whole seconds."""

    def __init__(self, seconds: int = RATE_SECONDS) -> None:
        self._seconds = seconds
        self._counts: deque[list[int]] = deque(maxlen=seconds + 1)  # [second, tokens]

    def add(self, now: float) -> None:
        second = int(now)
        if self._counts and self._counts[-1][0] == second:
            self._counts[-1][1] += 1
        else:
            self._counts.append([second, 1])

    def per_second(self, now: float) -> float:
        """Of the last whole seconds before `now`."""
        last = int(now)
        whole = (tokens for second, tokens in self._counts if last - self._seconds <= second < last)
        return sum(whole) / self._seconds


class Tracer(Protocol):
    """Makes spans of flights; see server.observe.tracing."""

    def begin(self, flight: Flight) -> str:
        """A sequence has arrived.  Returns the traceparent of its span; empty where it is not sampled."""
        ...

    def end(self, flight: Flight, now: float) -> None:
        """It has ended, in whatever way."""
        ...


class RequestBook:
    """Every sequence in flight, by the engine's id.  In one asyncio loop; `clock`: monotonic seconds."""

    def __init__(self, latencies: Latencies, clock: Callable[[], float] = time.monotonic) -> None:
        self._latencies, self._clock = latencies, clock
        self._flights: dict[str, Flight] = {}
        self.tracer: Tracer | None = None
        self.rate = TokenRate()
        self.first_token: deque[float] = deque(maxlen=RECENT)  # seconds, of the latest requests

    @property
    def flights(self) -> tuple[Flight, ...]:
        """In the order of their arrival."""
        return tuple(self._flights.values())

    @property
    def now(self) -> float:
        return self._clock()

    def open(self, request: GenerationRequest) -> Flight:
        """A sequence has arrived, in the task that asks for it."""
        flight = Flight(request, caller(), self._clock())
        self._flights[request.id] = flight
        return flight

    def token(self, flight: Flight, event: TokenEvent) -> None:
        """Its next token is here.  Called for every token: short."""
        now = self._clock()
        flight.tokens += 1
        self.rate.add(now)
        if flight.last_at is None:
            flight.first_at, flight.queued = now, event.queued
            if not flight.request.emitted:
                self.first_token.append(now - flight.began)
            self._latencies.first(flight, now)
        else:
            self._latencies.inter_token.observe(now - flight.last_at)
        flight.last_at = now
        flight.finish = event.finish

    def finished(self, sequence: str, reason: FinishReason) -> None:
        """Its text has ended, maybe before the engine would have ended it."""
        flight = self._flights.get(sequence)
        if flight is not None:
            flight.finish = reason

    def close(self, flight: Flight) -> None:
        """It has ended: well (`flight.finish`), by `flight.error`, or because its client went away."""
        self._flights.pop(flight.request.id, None)
        now = self._clock()
        self._latencies.end(flight, now)
        if self.tracer is not None:
            self.tracer.end(flight, now)

    def trace(self, flight: Flight) -> str:
        """The traceparent of its span; empty where it is not traced."""
        return "" if self.tracer is None else self.tracer.begin(flight)


class Observed:
    """A Generator that keeps the book of another one."""

    def __init__(self, inner: Generator, book: RequestBook) -> None:
        self._inner, self._book = inner, book

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[TokenEvent, None]:
        """See pipeline.request.Generator."""
        flight = self._book.open(request)
        request = msgspec.structs.replace(
            request, origin=flight.caller.request_id, trace=self._book.trace(flight)
        )
        try:
            async with aclosing(self._inner.generate(request)) as events:
                async for event in events:
                    self._book.token(flight, event)
                    yield event
        except PipelineError as error:
            flight.error = error
            raise
        finally:
            self._book.close(flight)
