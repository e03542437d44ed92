"""Who leads: which node becomes rank 0.  Pure: the same observations give the same order everywhere.

The leader tokenizes, schedules and serves the API beside its layers.  Ties are broken by the configured order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Strategy = Literal["health_based", "load_based", "round_robin", "manual"]

FAILURE_WEIGHT = 1.0
SILENCE_WEIGHT = 0.5  # for each heartbeat that is missing
TIGHT_MEMORY = 0.05  # share of free memory below which a node should not lead


@dataclass(frozen=True)
class Candidate:
    """A node that can take part, as it was last seen; None where nothing is known."""

    name: str
    failures: int = 0  # not forgiven yet
    missed_heartbeats: float = 0.0
    cpu_percent: float | None = None
    memory_percent: float | None = None


def health_score(node: Candidate) -> float:
    """Lower is healthier; 0 for a node of which nothing bad is known."""
    score = FAILURE_WEIGHT * node.failures + SILENCE_WEIGHT * int(node.missed_heartbeats)
    if node.memory_percent is not None and node.memory_percent > 100 * (1 - TIGHT_MEMORY):
        score += FAILURE_WEIGHT
    return score


def load_score(node: Candidate) -> float:
    """Lower is less loaded, 0 to 1; a node that says nothing counts as half loaded.

    In steps of a tenth: whatever jitters less than that must not move the leader.
    """
    known = [p for p in (node.cpu_percent, node.memory_percent) if p is not None]
    return round(max(known) / 100, 1) if known else 0.5


def elect(
    candidates: Sequence[Candidate],
    strategy: Strategy,
    last_leader: str | None = None,
    wanted: str | None = None,
) -> tuple[str, ...]:
    """The names of `candidates` in rank order, the leader first and the others in their order.

    candidates: in the configured order, at least one.
    last_leader: who led before; with round_robin the next one after it leads.
    wanted: who is to lead by an order of the operator; heeded with every strategy, if it is there.
    """
    names = [node.name for node in candidates]
    leader = wanted if wanted in names else _leader(candidates, strategy, last_leader)
    return (leader, *(name for name in names if name != leader))


def _leader(candidates: Sequence[Candidate], strategy: Strategy, last_leader: str | None) -> str:
    if strategy == "health_based":
        return min(candidates, key=health_score).name
    if strategy == "load_based":
        # A node that fails is no leader, however little it has to do.
        return min(candidates, key=lambda node: (health_score(node) >= 1, load_score(node))).name
    names = [node.name for node in candidates]
    if strategy == "round_robin" and last_leader in names:
        return names[(names.index(last_leader) + 1) % len(names)]
    return names[0]
