"""Sends the log lines of a rank to the coordinator; without lines it sleeps."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import NoReturn

from server.logs import ShippingHandler
from server.rpc.errors import CoordinatorError
from server.rpc.records import LogBatch, Registration

BATCH_LINES = 200
BATCH_BYTES = 500_000  # of one message, roughly
PAUSE_S = 0.5  # between two batches, so that a burst is few messages


class LogShipper:
    """In the asyncio loop of the rank."""

    def __init__(
        self,
        registration: Registration,
        handler: ShippingHandler,
        send: Callable[[LogBatch], Awaitable[None]],
    ) -> None:
        self._registration, self._handler, self._send = registration, handler, send
        self._lost = 0

    async def run(self) -> NoReturn:
        """Send what comes, until cancelled.  Lines that can't be sent are counted, not kept."""
        loop, some = asyncio.get_running_loop(), asyncio.Event()

        def tell() -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: the process ends
                loop.call_soon_threadsafe(some.set)

        self._handler.on_line = tell
        try:
            while True:
                lines = self._handler.take(BATCH_LINES)
                if not lines:
                    await some.wait()
                    some.clear()
                else:
                    await self._ship(lines)
                await asyncio.sleep(PAUSE_S)
        finally:
            self._handler.on_line = _nothing

    async def _ship(self, lines: list[str]) -> None:
        mine = self._registration
        dropped = self._handler.dropped + self._lost
        parts = _parts(lines)
        try:
            while parts:
                await self._send(LogBatch(mine.epoch, mine.rank, mine.node, parts[0], dropped))
                parts.pop(0)
        except CoordinatorError:  # a line about it would be the next one that can't be sent
            self._lost += sum(map(len, parts))


def _nothing() -> None:
    pass


def _parts(lines: list[str]) -> list[tuple[str, ...]]:
    """Parts of at most BATCH_BYTES, as long as no line is longer than that."""
    parts: list[list[str]] = [[]]
    size = 0
    for line in lines:
        length = 4 * len(line)
        if parts[-1] and size + length > BATCH_BYTES:
            parts.append([])
            size = 0
        parts[-1].append(line)
        size += length
    return [tuple(part) for part in parts]
