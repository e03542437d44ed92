"""Logs: one line an event, with node, rank, epoch, and the request it is about, on each.

Lines go to stderr, and those at hand also to whoever ships them to the coordinator.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from collections import deque
from collections.abc import Callable
from datetime import datetime
from typing import TextIO, TypeAlias

import structlog

from server.access.redaction import withhold_messages

Processor: TypeAlias = structlog.typing.Processor

KEPT_LINES = 1000  # waiting to be shipped; the oldest go first
MAX_LINE = 16_000  # characters of a shipped line; tracebacks may be longer

_identity: dict[str, object] = {}  # of this process, known once it has met the others

NOISY = ("httpx", "httpcore", "huggingface_hub", "transformers", "uvicorn", "asyncio")


class ShippingHandler(logging.Handler):
    """Keeps the latest lines as JSON until somebody takes them."""

    def __init__(self) -> None:
        super().__init__()
        self._lines: deque[str] = deque()
        self.dropped = 0  # since the process started
        self.on_line: Callable[[], None] = lambda: None  # called in the thread that logs

    def emit(self, record: logging.LogRecord) -> None:
        """See logging.Handler, which holds its lock meanwhile."""
        try:
            line = self.format(record)
        except Exception:  # noqa: BLE001 - as the handlers of the standard library do
            self.handleError(record)
            return
        if len(self._lines) == KEPT_LINES:
            self._lines.popleft()
            self.dropped += 1
        self._lines.append(line if len(line) <= MAX_LINE else _cut(line))
        self.on_line()

    def take(self, most: int) -> list[str]:
        """Up to `most` of the oldest lines, which are kept no longer."""
        self.acquire()
        try:
            return [self._lines.popleft() for _ in range(min(most, len(self._lines)))]
        finally:
            self.release()


def _cut(line: str) -> str:
    """A JSON line whose longest text is shortened."""
    event = json.loads(line)
    longest = max(event, key=lambda key: len(str(event[key])))
    room = MAX_LINE - (len(line) - len(json.dumps(event[longest])))
    return json.dumps({**event, longest: str(event[longest])[: max(0, room // 2)], "cut": True})


def configure(
    level: str = "info",
    form: str | None = "text",
    *,
    show_content: bool = False,
    stream: TextIO | None = None,
) -> None:
    """Send structlog and the standard library's logging to `stream` in one format.

    stream: None is stderr.

    form: text, json, or None for what suits whoever reads it.
    show_content: whether messages of errors may be logged that can quote what a client sent.
    """
    shared = [*_shared(), *([] if show_content else [withhold_messages])]
    as_json = (form or fitting_form()) == "json"
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(_formatter(shared, _json_processors() if as_json else _text_processors()))
    root = logging.getLogger()
    shipping().setFormatter(_formatter(shared, _json_processors()))
    root.handlers[:] = [handler, shipping()]
    set_level(level)
    for noisy in NOISY:
        logging.getLogger(noisy).setLevel(logging.WARNING)
    structlog.configure(
        # Levels are the standard library's, which can be changed while everything runs.
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )


def fitting_form() -> str:
    """Text where a person reads it: on a terminal, and through mlx.launch, which has one."""
    return "text" if sys.stderr.isatty() or "MLX_RANK" in os.environ else "json"


def set_level(level: str) -> None:
    """From now on, write lines of this level and of graver ones."""
    logging.getLogger().setLevel(level.upper())


def bind_rank(node: str, rank: int, epoch: int) -> None:
    """Put these on every later line of this process, whatever thread or task writes it."""
    _identity.update(node=node, rank=rank, epoch=epoch)


_shipping: list[ShippingHandler] = []


def shipping() -> ShippingHandler:
    """The handler of this process from which lines are shipped."""
    if not _shipping:
        _shipping.append(ShippingHandler())
    return _shipping[0]


def _shared() -> list[Processor]:
    return [
        _add_identity,
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(key="time"),  # Unix time, seconds
    ]


def _formatter(shared: list[Processor], last: list[Processor]) -> logging.Formatter:
    remove = structlog.stdlib.ProcessorFormatter.remove_processors_meta
    return structlog.stdlib.ProcessorFormatter(foreign_pre_chain=shared, processors=[remove, *last])


def _json_processors() -> list[Processor]:
    # Tracebacks without local variables: among those are prompts.
    return [structlog.processors.format_exc_info, structlog.processors.JSONRenderer(default=repr)]


def _text_processors() -> list[Processor]:
    return [
        _readable_time,
        structlog.dev.ConsoleRenderer(
            colors=sys.stderr.isatty(),
            pad_event_to=0,
            pad_level=False,
            # The default shows the local variables of each frame, and with them prompts.
            exception_formatter=structlog.dev.plain_traceback,
        ),
    ]


def _readable_time(
    logger: object, method: str, event: structlog.typing.EventDict
) -> structlog.typing.EventDict:
    at = datetime.fromtimestamp(event.pop("time")).strftime("%H:%M:%S")
    return {"timestamp": at, **event}


def _add_identity(
    logger: object, method: str, event: structlog.typing.EventDict
) -> structlog.typing.EventDict:
    return {**_identity, **event}
