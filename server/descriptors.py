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
PLENTY = 10_240  # macOS allows a process no more, whatever its hard limit says


def limit() -> int:
    """How many descriptors this process may have."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return PLENTY if soft == resource.RLIM_INFINITY else soft


def raise_limit() -> None:
    """Lift the soft limit to the hard one, or to PLENTY where there is none.

    Call it after the import of mlx-lm, which sets both, to 2048 and 4096: what is raised before is lost then,
    and only root could raise the hard one again.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return
    wanted = PLENTY if hard == resource.RLIM_INFINITY else hard
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))


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
