"""Requests to end: the first one has what was started stopped, which no later one interrupts."""

from __future__ import annotations

import signal
import sys
from types import FrameType
from typing import NoReturn

REQUESTS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def end_once() -> None:
    """To be called by a program before it starts anything; what it starts has to end within a bounded time."""
    for number in REQUESTS:
        if signal.getsignal(number) != signal.SIG_IGN:  # as nohup has it
            signal.signal(number, _end)


def _end(number: int, frame: FrameType | None) -> NoReturn:
    for each in REQUESTS:
        # Not SIG_IGN, which programs that are started from now on would inherit.
        signal.signal(each, _heard)
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    sys.exit(128 + number)


def _heard(number: int, frame: FrameType | None) -> None:
    """It ends already."""
