"""What gives way when a stage uses more memory than its share, and when it may come back.  Pure.

Admission keeps the caches within their budget, but not what computing takes on top of them, nor what an
allocator holds back.  So every step brings the largest part of its share that a stage used.  Above 1, first
kept prefixes go, half of them at a time, then the batch shrinks, by a quarter at a time but never below one
sequence; sequences that lose their place are prefilled again later.  After calm steps both come back little
by little.

Sequences that join or leave a batch are copied, so single steps take more than what is held: only when all of
several steps in a row do, anything changes.  What is taken back and too much again comes back later each time.
"""

from __future__ import annotations

from dataclasses import dataclass

CALM = 0.9  # of the share; below, what was taken may come back
PATIENCE = 64  # calm steps before each step back
MOST_PATIENCE = 1 << 12


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

    def __init__(self, max_prefix_tokens: int, max_running: int, window: int) -> None:
        """`window`: steps in flight; as many may be copying when a change has come into effect."""
        self.max_prefix_tokens, self.max_running = max_prefix_tokens, max_running
        self.budget = Budget()
        self.used = 0.0
        self.reductions = 0
        self._window = window
        self._from_step = 0  # earlier ones don't show yet what the last change brought
        self._over = self._calm = 0  # steps in a row
        self._patience = PATIENCE
        self._grew = False  # by the last change

    def observe(
        self, step: int, next_step: int, used: float, prefix_tokens: int, running: int
    ) -> Budget | None:
        """Step `step` used the part `used` of a share; `next_step` will be the first to know of any change.

        `prefix_tokens`, `running`: held while it ran.  Returns the new budget if it has changed.
        """
        self.used = used
        if step < self._from_step:
            return None
        self._over = self._over + 1 if used > 1 else 0
        self._calm = self._calm + 1 if used <= CALM else 0
        before = self.budget
        if self._over > self._window:
            self.budget = self._less(prefix_tokens, running)
        elif before.reduced and self._calm >= self._patience:
            self.budget = self._more()
        if self.budget == before:
            return None
        self._change(grows=self._over == 0)
        self._from_step = next_step + self._window
        return self.budget

    def _change(self, grows: bool) -> None:
        if grows:
            self._patience = self._patience if self.budget.reduced else PATIENCE
        else:
            self.reductions += 1
            if self._grew:
                self._patience = min(2 * self._patience, MOST_PATIENCE)
        self._grew = grows
        self._over = self._calm = 0

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
