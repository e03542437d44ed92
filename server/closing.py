"""Ends that are bounded, and parts that end whatever becomes of the others."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Coroutine, Mapping
from typing import Any, TypeVar

import structlog

log = structlog.get_logger()

T = TypeVar("T")

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
