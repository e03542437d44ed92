"""Fan-out of the latest cluster state to any number of slow or fast readers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

from server.rpc.errors import Overloaded
from server.rpc.records import ClusterSnapshot


class Watchers:
    """Each watcher has room for one snapshot, and a later one takes its place.

    A snapshot is the whole state, so a reader that skipped some has lost nothing but history, and
    a reader that never reads costs one snapshot of memory.
    """

    def __init__(self, limit: int = 64) -> None:
        self._limit = limit
        self._queues: set[asyncio.Queue[ClusterSnapshot | None]] = set()

    def __len__(self) -> int:
        return len(self._queues)

    def publish(self, snapshot: ClusterSnapshot) -> None:
        for queue in self._queues:
            _replace(queue, snapshot)

    def close(self) -> None:
        """End every watcher's stream."""
        for queue in self._queues:
            _replace(queue, None)

    async def watch(self, first: ClusterSnapshot) -> AsyncGenerator[ClusterSnapshot, None]:
        """`first`, then every published snapshot that the reader is in time for, until `close`.

        Raises Overloaded when the limit is reached.
        """
        if len(self._queues) >= self._limit:
            raise Overloaded(f"{self._limit} watchers are connected, no more are allowed")
        queue: asyncio.Queue[ClusterSnapshot | None] = asyncio.Queue(maxsize=1)
        self._queues.add(queue)
        try:
            snapshot: ClusterSnapshot | None = first
            while snapshot is not None:
                yield snapshot
                snapshot = await queue.get()
        finally:
            self._queues.discard(queue)


def _replace(queue: asyncio.Queue[ClusterSnapshot | None], item: ClusterSnapshot | None) -> None:
    if queue.full():
        queue.get_nowait()
    queue.put_nowait(item)
