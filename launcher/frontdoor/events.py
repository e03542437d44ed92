"""GET /v1/cluster/events at the front door: one stream that outlives failovers.

Rank 0's events go through as they are, and those of the next rank 0 follow.  Two kinds come from here:
`launcher`, the status document, at once when something has changed and once a second; and `gap`, with a reason,
when there is nothing to be had of rank 0.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing

import httpx
from sse_starlette import EventSourceResponse
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Scope

from launcher.door import LeaderAddress
from launcher.frontdoor.leadership import Backoff, Leadership
from launcher.frontdoor.upstream import Upstream
from server.api.errors import Overloaded
from server.api.wire import to_json
from server.observe.feed import EventFeed

PATH = "/v1/cluster/events"
PING_S = 15
CLOSING_S = 1.0  # for the connections of those who have left
SILENCE_S = 8.0  # of rank 0, which has something to say every second
LONG_S = 3600.0  # nothing depends on it: whatever is waited for wakes


class LauncherEvents:
    """What the launcher itself has to say, with what rank 0 has, and the route."""

    def __init__(
        self,
        status: Callable[[], dict[str, object]],
        leadership: Leadership,
        upstream: Upstream,
        backoff: Callable[[], Backoff],
    ) -> None:
        """`status`: the document, made once for all viewers; `upstream`: for viewers alone, and closed here."""
        self._feed = EventFeed(lambda: _event("launcher", to_json(status())))
        self._leadership, self._upstream, self._backoff = leadership, upstream, backoff
        self._ending: set[asyncio.Task[None]] = set()  # of viewers that have left

    def changed(self) -> None:
        """Something of the status has; what is changed in the same turn of the event loop is shown with it."""
        self._feed.poke()

    def end(self) -> None:
        """End every viewer's stream."""
        self._feed.close()

    async def close(self) -> None:
        if self._ending:
            await asyncio.wait(self._ending, timeout=CLOSING_S)
        await self._upstream.close()

    def routes(self) -> list[Route]:
        return [Route(PATH, self._answer, methods=["GET"])]

    async def _answer(self, request: Request) -> Response:
        self._feed.check_room()
        return EventSourceResponse(self._events(request.scope), ping=PING_S, sep="\n")

    async def _events(self, scope: Scope) -> AsyncGenerator[bytes, None]:
        latest = _Latest()
        leader = _LeaderEvents(self._leadership, self._upstream, self._backoff(), scope, latest)
        tasks = [asyncio.create_task(self._own(latest)), asyncio.create_task(leader.follow())]
        for task in tasks:
            task.add_done_callback(lambda _: latest.end())
        try:
            async for event in latest:
                yield event
            for task in tasks:
                if task.done():
                    task.result()  # what broke it
        finally:
            # Not waited for: whoever ends this generator goes on cancelling it, and with it those it waits for
            # while they close their connections to rank 0, which then stay.
            for task in tasks:
                self._ending.add(task)
                task.add_done_callback(self._ending.discard)
                task.cancel()

    async def _own(self, latest: _Latest) -> None:
        async with aclosing(self._feed.watch()) as events:
            try:
                async for event in events:
                    latest.put("launcher", event)
            except Overloaded as error:  # the last place was taken since there was room
                latest.put("launcher", _event("gap", to_json({"reason": str(error)})))


class _LeaderEvents:
    """Those of whoever leads, for one viewer and with that viewer's key."""

    def __init__(
        self,
        leadership: Leadership,
        upstream: Upstream,
        backoff: Backoff,
        scope: Scope,
        latest: _Latest,
    ) -> None:
        self._leadership, self._upstream, self._backoff = leadership, upstream, backoff
        self._scope, self._latest = scope, latest

    async def follow(self) -> None:
        """Until cancelled."""
        while True:
            leader = self._leadership.address
            if leader is None:
                self._gap(self._leadership.reason)
                await self._leadership.pause(LONG_S)
                continue
            self._gap(await self._while_it_leads(leader))
            if self._leadership.address == leader:
                await self._leadership.pause(self._backoff.pause())

    async def _while_it_leads(self, leader: LeaderAddress) -> str:
        """Why there is no more: a host without power closes no connection, so it is not waited for alone."""
        reading = asyncio.create_task(self._read(leader))
        lost = asyncio.create_task(self._leadership.lost(leader))
        try:
            await asyncio.wait({reading, lost}, return_when=asyncio.FIRST_COMPLETED)
            return reading.result() if reading.done() else self._leadership.reason
        finally:
            reading.cancel()
            lost.cancel()
            await asyncio.gather(reading, lost, return_exceptions=True)

    async def _read(self, leader: LeaderAddress) -> str:
        try:
            async with self._upstream.watch(leader, self._scope, SILENCE_S) as response:
                if response.is_error:
                    return _reason(response, await response.aread())
                async for event in _blocks(response.aiter_raw()):
                    self._backoff.reset()
                    self._latest.put("rank 0", event)
        except httpx.TransportError as error:
            return f"the connection to rank 0 was lost ({type(error).__name__})"
        return "rank 0 has ended the stream"

    def _gap(self, reason: str) -> None:
        self._latest.put("rank 0", _event("gap", to_json({"reason": reason})))


class _Latest:
    """The latest event of each source: who reads slowly is spared the ones in between."""

    def __init__(self) -> None:
        self._events: dict[str, bytes] = {}
        self._some = asyncio.Event()
        self._ended = False

    def put(self, source: str, event: bytes) -> None:
        self._events[source] = event
        self._some.set()

    def end(self) -> None:
        self._ended = True
        self._some.set()

    async def __aiter__(self) -> AsyncGenerator[bytes, None]:
        """Until `end`, with what came before it."""
        while self._events or not self._ended:
            await self._some.wait()
            self._some.clear()
            events, self._events = self._events, {}
            for source in sorted(events):
                yield events[source]


async def _blocks(chunks: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
    """Whole events of rank 0's stream; its comments keep another connection alive than the viewer's."""
    rest = b""
    async for chunk in chunks:
        *blocks, rest = (rest + chunk).split(b"\n\n")
        for block in blocks:
            if not block.startswith(b":"):
                yield block + b"\n\n"


def _event(kind: str, data: bytes) -> bytes:
    return b"event: " + kind.encode() + b"\ndata: " + data + b"\n\n"


def _reason(response: httpx.Response, body: bytes) -> str:
    """What an error says."""
    try:
        message = json.loads(body)["error"]["message"]
    except (ValueError, KeyError, TypeError):
        return f"rank 0 answers with status {response.status_code}"
    return str(message)
