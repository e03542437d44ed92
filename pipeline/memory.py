"""What gives way when a stage uses more memory than its share, and when it may come back.  Pure.

Admission keeps the caches within their budget, but not what computing takes on top of them, nor what an
allocator holds back.  So every step brings the largest part of its share that a stage used.  Above 1, first
kept prefixes go, half of them at a time, then the batch shrinks, by a quarter at a time but never below one
sequence; sequences that lose their place are prefilled again later.  After calm steps both come back little
by little.
"""

from __future__ import annotations

from dataclasses import dataclass

CALM = 0.9  # of the share; below, what was taken may come back
PATIENCE = 64  # calm steps before each step back


@dataclass(frozen=True)
class Budget:
    """What may be held; None: as configured."""

    prefix_tokens: int | None = None
    running: int | None = None  # sequences

    @property
    def reduced(self) -> bool:
        """Whether memory keeps anything from being held."""
        return self != Budget()


@dataclass(frozen=True)
class MemoryState:
    """What /v1/cluster and the metrics show."""

    used: float = 0.0  # of its share, by the stage that used most in the latest step
    budget: Budget = Budget()
    reductions: int = 0  # since the start
    preempted: int = 0  # sequences, likewise


class MemoryWatch:
    """Observes each step, and says what may be held from now on."""

    def __init__(self, max_prefix_tokens: int, max_running: int) -> None:
        self.max_prefix_tokens, self.max_running = max_prefix_tokens, max_running
        self.budget = Budget()
        self.used = 0.0
        self.reductions = 0
        self._from_step = 0  # earlier ones don't show yet what the last change brought
        self._calm = 0

    def observe(
        self, step: int, next_step: int, used: float, prefix_tokens: int, running: int
    ) -> Budget | None:
        """Step `step` used the part `used` of a share; `next_step` will be the first to show any change.

        `prefix_tokens`, `running`: held at this moment.  Returns the new budget if it has changed.
        """
        self.used = used
        if step < self._from_step:
            return None
        before = self.budget
        if used > 1:
            self._calm = 0
            self.budget = self._less(prefix_tokens, running)
            self.reductions += self.budget != before
        elif used > CALM:
            self._calm = 0
        elif before.reduced:
            self._calm += 1
            if self._calm >= PATIENCE:
                self._calm = 0
                self.budget = self._more()
        if self.budget == before:
            return None
        self._from_step = next_step
        return self.budget

    def _less(self, prefix_tokens: int, running: int) -> Budget:
        if prefix_tokens > 0:
            return Budget(prefix_tokens // 2, self.budget.running)
        fewer = max(1, running - max(1, running // 4))
        ceiling = fewer if self.budget.running is None else min(fewer, self.budget.running)
        return Budget(0 if self.max_prefix_tokens else None, ceiling)

    def _more(self) -> Budget:
        running, prefix_tokens = self.budget.running, self.budget.prefix_tokens
        if running is not None:
            running += max(1, running // 4)
            return Budget(prefix_tokens, running if running < self.max_running else None)
        more = (prefix_tokens or 0) + max(1, self.max_prefix_tokens // 8)
        return Budget(more if more < self.max_prefix_tokens else None, None)
