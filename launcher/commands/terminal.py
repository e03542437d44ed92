"""A terminal that shows something until q is pressed."""

from __future__ import annotations

import os
import select
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

QUIT = b"qQ\x03\x04"  # Ctrl-C and Ctrl-D, where a terminal gives them as characters
ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
READ = 1024  # bytes


class Terminal:
    """Made by `terminal`."""

    def __init__(self, keys: int | None, wakes: tuple[int, int]) -> None:
        """`keys`: where they are read from; `wakes`: both ends of a pipe."""
        self._keys, (self._woken, self._wake) = keys, wakes
        self.ended = False

    def wake(self) -> None:
        """End a wait; from any thread, and from a signal handler."""
        with suppress(OSError):  # so many wakes are under way already, or it is over
            os.write(self._wake, b"\0")

    def end(self, *_: int | FrameType | None) -> None:
        """As if q had been pressed."""
        self.ended = True
        self.wake()

    def wait(self, seconds: float) -> bool:
        """Until a key is pressed, something wakes it or the time is over; whether to go on."""
        sources = [self._woken] if self._keys is None else [self._woken, self._keys]
        ready, _, _ = select.select(sources, [], [], seconds)
        if self._woken in ready:
            os.read(self._woken, READ)
        if self._keys in ready:
            pressed = _pressed(self._keys)
            self.ended = self.ended or not pressed or any(key in QUIT for key in pressed)
        return not self.ended


def _pressed(keys: int | None) -> bytes:
    """Empty: there will be no more."""
    assert keys is not None
    try:
        return os.read(keys, READ)
    except OSError:  # the window was closed
        return b""


@contextmanager
def terminal() -> Iterator[Terminal]:
    """Keys come as they are pressed; a new size of the window wakes, and signals end as q does."""
    wakes = os.pipe()
    for end in wakes:
        os.set_blocking(end, False)
    keys = sys.stdin.fileno() if sys.stdin.isatty() else None
    made = Terminal(keys, wakes)
    handlers: dict[int, Callable[..., None]] = dict.fromkeys(ENDING, made.end)
    handlers[signal.SIGWINCH] = lambda *_: made.wake()
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        with _each_key(keys):
            yield made
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for end in wakes:
            os.close(end)


@contextmanager
def _each_key(keys: int | None) -> Iterator[None]:
    """Not line by line, and not shown."""
    if keys is None:
        yield
        return
    import termios  # there is none on some systems, which have no such terminal either
    import tty

    before = termios.tcgetattr(keys)
    tty.setcbreak(keys)
    try:
        yield
    finally:
        with suppress(termios.error):  # the window was closed
            termios.tcsetattr(keys, termios.TCSADRAIN, before)
