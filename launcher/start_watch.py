"""Whether a start still gets on: pure; times in seconds.

How long a start takes nobody knows: a model may have to be fetched.  But whoever works at it says so, and one
that has come no further for too long never will.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from launcher.watch import Fault
from server.progress import Step

KEY = "launcher.start_timeout"
DONE = 100  # percent


class StartWatch:
    """Of one epoch until it serves.  Feed it what the ranks say; those that have said nothing are missing."""

    def __init__(self, order: Sequence[str], timeout: float, now: float, leader_at: str) -> None:
        """`order`: nodes by rank.  `leader_at`: where rank 0 is asked how it is."""
        self._order, self._timeout, self._leader_at = tuple(order), timeout, leader_at
        self._steps: Mapping[int, Step] = {}
        self._answered = False
        self._since = now  # since when nobody has come any further

    def seen(self, steps: Mapping[int, Step], answered: bool, now: float) -> None:
        """`steps`: the latest of each rank.  `answered`: whether rank 0 has answered the launcher so far."""
        known = {rank: step for rank, step in steps.items() if rank < len(self._order)}
        if known != self._steps or answered != self._answered:
            self._since = now
        self._steps, self._answered = known, answered

    def fault(self, now: float) -> Fault | None:
        """Why it is given up; None while it gets on."""
        if now - self._since < self._timeout:
            return None
        return self._silence() or self._deafness() or self._standstill()

    @property
    def _bound(self) -> str:
        return f"for {self._timeout:g} s ({KEY})"

    def _silence(self) -> Fault | None:
        """Whose process has not come as far as to say anything."""
        silent = [n for rank, n in enumerate(self._order) if rank not in self._steps]
        if not silent:
            return None
        reason = f"nothing has been heard of the start of {', '.join(silent)} {self._bound}"
        return Fault(reason, self._blamed(silent))

    def _deafness(self) -> Fault | None:
        """All are there, but the launcher does not hear of it."""
        if self._answered or any(step.percent < DONE for step in self._steps.values()):
            return None
        leader = self._order[0]
        reason = (
            f"rank 0 ({leader}) has not answered the launcher at {self._leader_at} {self._bound}"
        )
        return Fault(reason, leader if len(self._order) > 1 else None)

    def _standstill(self) -> Fault:
        where = [f"{n} at {self._steps[r].what!r}" for r, n in enumerate(self._order)]
        behind = [n for r, n in enumerate(self._order) if self._steps[r].percent < DONE]
        reason = f"the start has come no further {self._bound}: {', '.join(where)}"
        return Fault(reason, self._blamed(behind))

    def _blamed(self, suspects: Sequence[str]) -> str | None:
        """The first of some; where it is all of them, or none, the fault may lie elsewhere."""
        return suspects[0] if 0 < len(suspects) < len(self._order) else None
