"""Which nodes are kept out, and for how long: a circuit breaker for each node.  Pure; all times in seconds.

A node that fails may start again at once, a few times.  One that goes on failing is kept out, for a time that
doubles with each failure; after a long time without one it is as good as new.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class BreakerPolicy:
    """`allowed`: failures in a row that have no consequence.  The rest in seconds."""

    allowed: int
    hold_initial: float
    hold_max: float
    forgive_after: float


@dataclass(frozen=True)
class Record:
    """What is known of a node.  `held_until`: 0 if it was never kept out."""

    failures: int = 0
    last_failure: float = 0.0
    held_until: float = 0.0

    def is_held(self, now: float) -> bool:
        """Whether the node is kept out."""
        return now < self.held_until

    def recent(self, policy: BreakerPolicy, now: float) -> int:
        """Failures that are not forgiven yet."""
        forgiven = now - self.last_failure >= policy.forgive_after
        return 0 if forgiven else self.failures

    def failed(self, policy: BreakerPolicy, now: float) -> Record:
        """The record after one more failure."""
        failures = self.recent(policy, now) + 1
        beyond = failures - policy.allowed
        hold = 0.0
        if beyond > 0:
            # The exponent is bounded: floats are, too.
            hold = min(policy.hold_max, policy.hold_initial * 2.0 ** min(beyond - 1, 64))
        return Record(failures, now, now + hold if hold else self.held_until)
