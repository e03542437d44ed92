"""Ends that are bounded, and parts that end whatever becomes of the others."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from collections.abc import Awaitable, Coroutine, Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import Any, TypeVar

import structlog

log = structlog.get_logger()

T = TypeVar("T")

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
LEFTOVER_SECONDS = 1.0  # for tasks, and then for threads, that nobody has waited for


async def close_all(parts: Mapping[str, Awaitable[None]], seconds: float) -> None:
    """Close all parts at once, for at most `seconds`.

    One that fails or takes longer is logged, cancelled and left: it disturbs no other.
    """
    if not parts:
        return
    tasks = {asyncio.ensure_future(part): name for name, part in parts.items()}
    _, late = await asyncio.wait(tasks, timeout=seconds)
    for task, name in tasks.items():
        if task in late:
            task.cancel()
            log.warning("not closed in time", part=name, seconds=seconds)
        elif not task.cancelled() and task.exception() is not None:
            log.warning("not closed in order", part=name, error=repr(task.exception()))


def run_to_end(main: Coroutine[Any, Any, T]) -> T:
    """asyncio.run, except that tasks and threads which do not end are left instead of waited for."""
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    try:
        return loop.run_until_complete(main)
    finally:
        left = asyncio.all_tasks(loop)
        for task in left:
            task.cancel()
        if left:
            loop.run_until_complete(asyncio.wait(left, timeout=LEFTOVER_SECONDS))
        asyncio.set_event_loop(None)
        loop.close()


@contextmanager
def unwinding() -> Iterator[None]:
    """A signal that would end this process in the middle of this ends it behind: temporary folders go first.

    It dies of the signal all the same, which tells whoever started it that it was no fault of its own.
    """
    asked: list[int] = []

    def leave(number: int, frame: FrameType | None) -> None:
        asked.append(number)
        raise SystemExit(128 + number)

    deadly = [n for n in STOP_SIGNALS if signal.getsignal(n) is signal.SIG_DFL]
    for number in deadly:
        signal.signal(number, leave)
    try:
        yield
    finally:
        for number in deadly:
            signal.signal(number, signal.SIG_DFL)
        for reason in asked:
            os.kill(os.getpid(), reason)


def threads_hang() -> bool:
    """Whether a thread is left that the interpreter would wait for at its end, or the engine's."""
    end = time.monotonic() + LEFTOVER_SECONDS
    for thread in threading.enumerate():
        counts = not thread.daemon or thread.name == "engine"
        if counts and thread is not threading.current_thread():
            thread.join(max(0.0, end - time.monotonic()))
            if thread.is_alive():
                return True
    return False
