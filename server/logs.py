"""Logs: one line an event, with the node and the rank on each."""

from __future__ import annotations

import logging
import sys

import structlog

from server.access.redaction import withhold_messages

_identity: dict[str, object] = {}  # of this process, known once it has met the others


def configure(level: int = logging.INFO, show_content: bool = False) -> None:
    """Send structlog and the standard library's logging to stderr in one format.

    show_content: whether messages of errors may be logged that can quote what a client sent.
    """
    shared: list[structlog.typing.Processor] = [
        _add_identity,
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="%H:%M:%S", utc=False),
        *([] if show_content else [withhold_messages]),
    ]
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=shared,
        processors=[
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            structlog.dev.ConsoleRenderer(
                colors=sys.stderr.isatty(),
                pad_event_to=0,
                pad_level=False,
                # The default shows the local variables of each frame, and with them prompts.
                exception_formatter=structlog.dev.plain_traceback,
            ),
        ],
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    for noisy in ("httpx", "httpcore", "huggingface_hub", "transformers", "uvicorn", "asyncio"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.make_filtering_bound_logger(level),
        cache_logger_on_first_use=True,
    )


def bind_rank(node: str, rank: int) -> None:
    """Put node and rank on every later line of this process, whatever thread or task writes it."""
    _identity.update(node=node, rank=rank)


def _add_identity(
    logger: object, method: str, event: structlog.typing.EventDict
) -> structlog.typing.EventDict:
    return {**_identity, **event}
