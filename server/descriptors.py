"""File descriptors: as many as this process may have, and a calm answer when they run out."""

from __future__ import annotations

import asyncio
import errno
import resource
from typing import Any

import structlog

log = structlog.get_logger(__name__)

EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
LOG_INTERVAL_S = 10.0


def raise_limit() -> None:
    """Lift the soft limit to the hard one: mlx-lm lowers both when it is imported."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def answer_exhaustion_calmly(loop: asyncio.AbstractEventLoop) -> None:
    """Log once per LOG_INTERVAL_S that connections have to wait.

    asyncio reports each failed accept with a traceback, as often as the backlog is long, every second.
    """
    last = -LOG_INTERVAL_S

    def handle(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        nonlocal last
        error = context.get("exception")
        if not (isinstance(error, OSError) and error.errno in EXHAUSTED):
            loop.default_exception_handler(context)
        elif loop.time() - last >= LOG_INTERVAL_S:
            last = loop.time()
            log.error("connections have to wait", error=str(error))

    loop.set_exception_handler(handle)
