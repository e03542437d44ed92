"""One renderer for all viewers, and none without them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable

import pytest

from server.api.errors import Overloaded
from server.observe import feed as feeds
from server.observe import routes
from server.observe.feed import EventFeed

pytestmark = pytest.mark.anyio

DEADLINE = 60.0  # seconds


class Renderer:
    def __init__(self) -> None:
        self.count = 0

    def __call__(self) -> bytes:
        self.count += 1
        return b"%d" % self.count


async def until(condition: Callable[[], bool]) -> None:
    async def poll() -> None:
        while not condition():
            await asyncio.sleep(0.005)

    await asyncio.wait_for(poll(), DEADLINE)


async def take(viewer: AsyncGenerator[bytes, None]) -> bytes:
    return await asyncio.wait_for(anext(viewer), DEADLINE)


async def test_nothing_is_rendered_while_nobody_looks() -> None:
    render = Renderer()
    feed = EventFeed(render, interval_s=0.15)
    feed.poke()
    assert render.count == 0
    viewer = feed.watch()
    assert await take(viewer) == b"1"
    assert await take(viewer) == b"2"
    await viewer.aclose()
    assert len(feed) == 0
    seen = render.count
    feed.poke()
    await until(lambda: not [t for t in asyncio.all_tasks() if "EventFeed" in repr(t.get_coro())])
    assert render.count == seen


async def test_a_change_is_shown_before_the_second_is_over() -> None:
    feed = EventFeed(Renderer(), interval_s=3600.0)
    viewer = feed.watch()
    await take(viewer)
    feed.poke()
    assert await take(viewer) == b"2"
    await viewer.aclose()


async def test_viewers_share_pictures_and_a_slow_one_gets_the_latest() -> None:
    feed = EventFeed(Renderer(), interval_s=0.12)
    slow, quick = feed.watch(), feed.watch()
    assert [await take(slow), await take(quick)] == [b"1", b"1"]
    while int(await take(quick)) < 5:
        pass
    assert int(await take(slow)) >= 4
    feed.close()
    assert [picture async for picture in slow] == []
    assert [picture async for picture in quick] == []


async def test_viewers_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feeds, "MAX_VIEWERS", 1)
    feed = EventFeed(Renderer())
    viewer = feed.watch()
    await take(viewer)
    with pytest.raises(Overloaded):
        feed.check_room()
    await viewer.aclose()
    feed.check_room()


async def test_who_finds_the_last_place_taken_gets_a_stream_without_events(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It was free when the answer began."""
    monkeypatch.setattr(feeds, "MAX_VIEWERS", 0)
    stream = routes._events(EventFeed(lambda: b"{}"))
    assert [event async for event in stream] == []
