"""Tracebacks without what people said.

The message of an error that nobody foresaw may quote a prompt, an output or a key; its frames are code.  So the
messages of this project's own errors are shown, but for those that say `may_quote`, those of the operating
system, and no others.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Iterator
from types import TracebackType

import structlog

OWN = ("config", "launcher", "pipeline", "server")
WITHHELD = "(message withheld; access.log_prompts shows it)"
_DEEPEST = 20  # causes of causes


def withhold_messages(
    logger: object, method: str, event: structlog.typing.EventDict
) -> structlog.typing.EventDict:
    """A processor of structlog: `exc_info` becomes a text without messages that may quote somebody."""
    error = _error_of(event.pop("exc_info", None))
    if error is not None:
        # asyncio goes on with the task, and shows its error's message with it.
        event["event"] = str(event.get("event", "")).partition("\n")[0]
        event["exception"] = "\n".join(_lines(error, _DEEPEST))
    return event


def _error_of(given: object) -> BaseException | None:
    if isinstance(given, BaseException):
        return given
    if isinstance(given, tuple) and len(given) == 3:
        return given[1] if isinstance(given[1], BaseException) else None
    return sys.exc_info()[1] if given else None


def _lines(error: BaseException, depth: int) -> Iterator[str]:
    before = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    if before is not None and depth:
        yield from _lines(before, depth - 1)
        yield "which led to:"
    yield from _frames(error.__traceback__)
    yield f"{type(error).__module__}.{type(error).__qualname__}: {loggable(error)}"
    members = getattr(error, "exceptions", ()) if depth else ()  # of a group
    for member in members:
        yield from (f"  {line}" for line in _lines(member, depth - 1))


def _frames(trace: TracebackType | None) -> Iterator[str]:
    if trace is not None:
        yield "Traceback (most recent call last):"
        yield from (line.rstrip() for line in traceback.format_tb(trace))


def loggable(error: BaseException) -> str:
    """The message of an error, if it is of a kind that quotes nobody."""
    own = type(error).__module__.split(".")[0] in OWN and not getattr(error, "may_quote", False)
    return str(error) if own or isinstance(error, OSError) else WITHHELD
