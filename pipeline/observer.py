"""What a stage can tell of its work while it works.  Nobody listens unless traces are wanted."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from pipeline.frames import Admission, Step


class StageObserver(Protocol):
    """Called in the engine thread, between steps: short."""

    def admitted(self, admission: Admission) -> None:
        """A sequence has got its place on this stage."""
        ...

    def stepped(self, step: Step, began: float, waited: float, ended: float) -> None:
        """The stage has done a step: from `began` to `ended`, of which it waited `waited` seconds.

        Times are of time.monotonic().
        """
        ...

    def ended(self, sequences: Iterable[int]) -> None:
        """Sequences have left, or are kept for later prompts only."""
        ...
