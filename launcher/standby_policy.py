"""When ranks are kept waiting for the next launch, and when those who wait will do: pure functions.

Times are in seconds, those of `Seen` by one clock; nodes go by their names.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

LONGEST_PAUSE = 600.0  # seconds until it is tried again, after however many that came to nothing


@dataclass(frozen=True)
class Waiting:
    """Those who wait.  `gone`: of `nodes`, whose process has ended; `warm`: who has said that it is ready."""

    nodes: tuple[str, ...]
    warm: frozenset[str] = frozenset()
    gone: frozenset[str] = frozenset()

    @property
    def ready(self) -> frozenset[str]:
        return self.warm - self.gone

    @property
    def state(self) -> str:
        """For people."""
        if self.gone:
            return "incomplete"
        return "warm" if self.will_do(self.nodes) else "warming"

    def will_do(self, order: Sequence[str]) -> bool:
        """Whether a launch of these nodes can be theirs."""
        return self.ready >= set(order)


@dataclass(frozen=True)
class Seen:
    """What the choice depends on.  `calm_since`: since when an epoch serves and is to go on; None: none does.

    `reachable`: the nodes that a launch might include.  `begun_at` and `failures` are of the latest attempts:
    those in a row that ended unused.
    """

    now: float
    calm_since: float | None
    reachable: tuple[str, ...]
    waiting: Waiting | None = None
    begun_at: float | None = None
    failures: int = 0


@dataclass(frozen=True)
class Begin:
    """Start a process on each of these nodes."""

    nodes: tuple[str, ...]


@dataclass(frozen=True)
class Drop:
    """End those who wait; others begin later."""

    reason: str


Choice = Begin | Drop | None


def choose(seen: Seen, settle: float) -> Choice:
    """What to do now, if anything.

    settle: seconds that a ring serves before others are begun beside it, and between two attempts at least.
    """
    waiting = seen.waiting
    missing = () if waiting is None else tuple(n for n in seen.reachable if _lacks(waiting, n))
    if seen.calm_since is None or (waiting is not None and not missing):
        return None
    pause = min(settle * 2.0 ** min(seen.failures, 32), max(settle, LONGEST_PAUSE))
    since = seen.calm_since if seen.begun_at is None else max(seen.calm_since, seen.begun_at)
    if seen.now < since + pause:
        return None
    if waiting is not None:
        return Drop(f"nobody waits on {', '.join(missing)}")
    return Begin(seen.reachable) if seen.reachable else None


def _lacks(waiting: Waiting, node: str) -> bool:
    return node not in waiting.nodes or node in waiting.gone
