"""The event stream of the front door, over real sockets: it goes on with whoever leads."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from launcher.door import LeaderAddress
from launcher.frontdoor import FrontDoor, events
from server.node.serve import HttpServers, Listener, start_servers
from server.observe.feed import EventFeed
from server.observe.routes import events_route
from tests.launcher.frontdoor.doors import DEADLINE_S, client_of, opened, soon

pytestmark = pytest.mark.anyio

Event = tuple[str, Any]


@dataclass
class Leader:
    """A rank 0 that shows its name, or says something else instead."""

    name: str
    instead: Response | None = None
    asked: list[dict[str, str]] = field(default_factory=list)
    servers: HttpServers | None = None

    async def start(self) -> LeaderAddress:
        feed = EventFeed(lambda: json.dumps({"node": self.name}).encode(), interval_s=0.05)
        route = events_route(feed)

        async def answer(request: Request) -> Response:
            self.asked.append(dict(request.headers))
            found: Response = self.instead or await route.endpoint(request)
            return found

        app = Starlette(routes=[Route(events.PATH, answer)])
        self.servers = await start_servers([Listener("inference", app, "127.0.0.1", 0)])
        return LeaderAddress(*self.servers.addresses["inference"], 1, self.name)

    async def end(self) -> None:
        """As when its process is killed."""
        assert self.servers is not None
        for server in self.servers._servers:
            for connection in list(server.server_state.connections):
                connection.transport.abort()
        await self.servers.stop(0)


@dataclass
class Viewer:
    """Reads the stream."""

    lines: AsyncIterator[str]
    seen: list[Event] = field(default_factory=list)

    async def next(self) -> Event:
        kind = "message"
        async for line in self.lines:
            if line.startswith("event: "):
                kind = line.removeprefix("event: ")
            elif line.startswith("data: "):
                self.seen.append((kind, json.loads(line.removeprefix("data: "))))
                return self.seen[-1]
        raise EOFError

    async def until(self, wanted: Event) -> None:
        async def look() -> None:
            while await self.next() != wanted:
                pass

        await asyncio.wait_for(look(), DEADLINE_S)


@asynccontextmanager
async def watching(door: FrontDoor, **headers: str) -> AsyncIterator[Viewer]:
    async with client_of(door) as client, client.stream("GET", events.PATH, headers=headers) as got:
        assert got.status_code == 200
        assert got.headers["content-type"].startswith("text/event-stream")
        yield Viewer(got.aiter_lines())


def shows(name: str) -> Event:
    return "message", {"node": name}


def lacks(reason: str) -> Event:
    return "gap", {"reason": reason}


async def test_one_stream_shows_the_failover_and_then_the_next_leader() -> None:
    first, second = Leader("mini1"), Leader("mini2")
    story = {"recoveries": 0}
    async with opened(document=lambda: dict(story)) as door, watching(door) as viewer:
        assert await viewer.next() == ("launcher", {"recoveries": 0})
        await viewer.until(lacks("the cluster is starting"))
        door.leader_changed(await first.start())
        await viewer.until(shows("mini1"))
        door.leader_changed(None, "mini1 is dead")
        await viewer.until(lacks("mini1 is dead"))
        await first.end()
        door.leader_changed(await second.start())
        story["recoveries"] = 1  # as the supervisor does: after, and in the same turn
        await viewer.until(("launcher", {"recoveries": 1}))
        if shows("mini2") not in viewer.seen:
            await viewer.until(shows("mini2"))
        assert viewer.seen.index(lacks("mini1 is dead")) < viewer.seen.index(shows("mini2"))
        await second.end()


async def test_a_change_is_shown_at_once_and_not_with_the_clock(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    feed = EventFeed
    monkeypatch.setattr(events, "EventFeed", lambda render: feed(render, interval_s=10_000))
    state = {"draining": False}
    async with opened(document=lambda: dict(state)) as door, watching(door) as viewer:
        assert await viewer.next() == ("launcher", {"draining": False})
        state["draining"] = True
        door.drain(True)
        await viewer.until(("launcher", {"draining": True}))


async def test_a_leader_whose_connection_breaks_is_asked_again_with_the_same_key() -> None:
    leader = Leader("mini1")
    async with opened(document=dict) as door:
        address = await leader.start()
        door.leader_changed(address)
        async with watching(door, authorization="Bearer k") as viewer:
            await viewer.until(shows("mini1"))
            assert leader.servers is not None
            [server] = leader.servers._servers
            [connection] = server.server_state.connections
            leader.name = "mini1 again"
            connection.transport.abort()
            await soon(lambda: len(leader.asked) == 2)
            await viewer.until(shows("mini1 again"))
        assert {headers["authorization"] for headers in leader.asked} == {"Bearer k"}
        assert {headers["x-forwarded-for"] for headers in leader.asked} == {"127.0.0.1"}
        await leader.end()


async def test_why_rank_0_refuses_is_told_and_it_is_asked_again() -> None:
    leader = Leader("mini1", JSONResponse({"error": {"message": "Too many look."}}, 503))
    async with opened(document=dict) as door, watching(door) as viewer:
        door.leader_changed(await leader.start())
        await viewer.until(lacks("Too many look."))
        leader.instead = None
        await viewer.until(shows("mini1"))
        await leader.end()


async def test_a_leader_that_says_nothing_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "SILENCE_S", 0.05)

    async def silence() -> AsyncIterator[bytes]:
        yield b": nothing\n\n"
        await asyncio.sleep(DEADLINE_S)

    leader = Leader("mini1", StreamingResponse(silence(), media_type="text/event-stream"))
    async with opened(document=dict) as door, watching(door) as viewer:
        door.leader_changed(await leader.start())
        await viewer.until(lacks("the connection to rank 0 was lost (ReadTimeout)"))
        await leader.end()


async def test_who_leaves_leaves_no_connection_to_rank_0() -> None:
    leader = Leader("mini1")
    async with opened(document=dict) as door:
        door.leader_changed(await leader.start())
        assert leader.servers is not None
        [server] = leader.servers._servers
        for _ in range(3):
            async with watching(door) as one, watching(door) as other:
                await one.until(shows("mini1"))
                await other.until(shows("mini1"))
            await soon(lambda: not server.server_state.connections)
        await leader.end()


async def test_streams_end_with_the_front_door() -> None:
    async with opened(document=dict) as door, watching(door) as viewer:
        await viewer.next()
        stopping = asyncio.create_task(door.stop(DEADLINE_S))
        with pytest.raises((EOFError, httpx.RemoteProtocolError)):
            await asyncio.wait_for(viewer.until(("nothing", None)), DEADLINE_S)
        await stopping


async def test_who_reads_slowly_gets_the_latest_of_each_source() -> None:
    latest = events._Latest()
    for source, event in (("rank 0", b"1"), ("launcher", b"2"), ("rank 0", b"3")):
        latest.put(source, event)
    stream = latest.__aiter__()
    assert [await anext(stream), await anext(stream)] == [b"2", b"3"]
    latest.end()
    with pytest.raises(StopAsyncIteration):
        await anext(stream)


async def test_events_are_found_however_they_are_cut() -> None:
    whole = b"data: 1\n\n: ping\n\nevent: x\ndata: 2\n\ndata: not all"
    for size in range(1, len(whole)):

        async def pieces(size: int = size) -> AsyncIterator[bytes]:
            for start in range(0, len(whole), size):
                yield whole[start : start + size]

        assert [event async for event in events._blocks(pieces())] == [
            b"data: 1\n\n",
            b"event: x\ndata: 2\n\n",
        ]
