"""One picture a second for any number of viewers; nothing is done while nobody looks."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import suppress

from server.api.errors import Overloaded

MAX_VIEWERS = 64
PAUSE_S = 0.1  # between two pictures, however much changes


class EventFeed:
    """Renders once for all viewers.  Each has room for one picture, and a later one takes its place."""

    def __init__(self, render: Callable[[], bytes], interval_s: float = 1.0) -> None:
        self._render, self._interval_s = render, interval_s
        self._viewers: set[asyncio.Queue[bytes | None]] = set()
        self._changed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._closed = False
        self._latest = b""

    def __len__(self) -> int:
        return len(self._viewers)

    def poke(self) -> None:
        """Something has changed that viewers should see at once.  Costs nothing without viewers."""
        if self._viewers:
            self._changed.set()

    def check_room(self) -> None:
        """Raises Overloaded when as many watch as may."""
        if self._closed or len(self._viewers) >= MAX_VIEWERS:
            raise Overloaded(f"{MAX_VIEWERS} viewers are connected, no more are allowed.")

    async def watch(self) -> AsyncGenerator[bytes, None]:
        """Pictures as they come, the latest one at once, until `close`."""
        self.check_room()
        queue: asyncio.Queue[bytes | None] = asyncio.Queue(maxsize=1)
        self._viewers.add(queue)
        try:
            if self._task is None:
                self._latest = self._render()
                self._task = asyncio.create_task(self._run())
            picture: bytes | None = self._latest  # a second old at most
            while picture is not None:
                yield picture
                picture = await queue.get()
        finally:
            self._viewers.discard(queue)
            if not self._viewers and self._task is not None:
                self._task.cancel()
                self._task = None

    def close(self) -> None:
        """End every viewer's stream."""
        self._closed = True
        for queue in self._viewers:
            _replace(queue, None)

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(PAUSE_S)
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._changed.wait(), self._interval_s - PAUSE_S)
            self._changed.clear()
            if self._closed:
                return
            self._latest = self._render()
            for queue in self._viewers:
                _replace(queue, self._latest)


def _replace(queue: asyncio.Queue[bytes | None], item: bytes | None) -> None:
    if queue.full():
        queue.get_nowait()
    queue.put_nowait(item)
