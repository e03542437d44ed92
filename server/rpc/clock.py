"""How far another machine's clock is from this one's, learned from calls that are made anyway."""

from __future__ import annotations

from collections import deque

KEPT = 16  # latest calls; older ones say nothing of clocks that drift


class ClockOffset:
    """Of all calls kept, the fastest one says most: its answer was written nearest to its middle."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, float]] = deque(maxlen=KEPT)  # round trip, offset; seconds

    def observe(self, asked: float, theirs: float, answered: float) -> None:
        """A call: Unix times of this clock before and after, and of the other one in between."""
        self._seen.append((answered - asked, theirs - (asked + answered) / 2))

    @property
    def seconds(self) -> float:
        """To be added to a time of this clock to get the other's; 0 before the first call."""
        return min(self._seen)[1] if self._seen else 0.0
