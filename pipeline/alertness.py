"""Waiting awake: for a moment, a thread looks for what it waits for again and again before it sleeps.

Who sleeps is woken up late, on a core that has gone to sleep as well and takes a while to be fast again.
Between the stages of a single stream that was more than the network takes.
"""

from __future__ import annotations

import time
from collections.abc import Callable


class Alertness:
    """Waits awake while waits are short.

    After a long one the next is slept through from its beginning: nothing is spent where nothing happens.
    One thread uses it.
    """

    def __init__(self, longest: float = 0.0, clock: Callable[[], float] = time.monotonic) -> None:
        """`longest`: seconds to wait awake at most; 0: never."""
        self._longest, self._clock = longest, clock
        self._short = False  # the last wait

    def wait(self, arrived: Callable[[], bool], sleep: Callable[[], bool]) -> bool:
        """Until `arrived` is true, or else as long as `sleep` takes, whose answer is returned."""
        started = self._clock()
        found = (self._short and self._look(arrived, started)) or sleep()
        self._short = self._clock() - started <= self._longest
        return found

    def _look(self, arrived: Callable[[], bool], started: float) -> bool:
        while self._clock() < started + self._longest:
            if arrived():
                return True
        return False
