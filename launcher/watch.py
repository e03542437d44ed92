"""Whether a launch of the ring works, from what rank 0 says of it, or does not say.  Pure; times in seconds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

DEAD_STATES = ("dead", "failed")


@dataclass(frozen=True)
class RankView:
    """A rank as rank 0's health document has it."""

    rank: int
    node: str
    state: str
    layers: tuple[int, int] | None = None
    heartbeat_age: float | None = None
    memory_bytes: int | None = None


@dataclass(frozen=True)
class WishView:
    """What an operator asked of the coordinator.  A later wish carries the earlier ones of other kinds along.

    `leader`: "" means as the strategy says; None here and for `draining`: never asked in this epoch.
    """

    revision: int = 0
    leader: str | None = None
    draining: bool | None = None


@dataclass(frozen=True)
class Report:
    """One answer of rank 0's health route."""

    ready: bool
    fault: str  # empty: none
    running: int
    waiting: int
    ranks: tuple[RankView, ...]
    wishes: WishView = WishView()

    @property
    def idle(self) -> bool:
        return self.running + self.waiting == 0


def read_report(status: int, body: Mapping[str, Any]) -> Report:
    """A health document of rank 0.  Raises KeyError, TypeError or ValueError for anything else."""
    failing = body["status"] == "failing"
    return Report(
        ready=status == 200 and body["status"] in ("ok", "degraded"),
        fault=str(body["reason"]) if failing else "",
        running=int(body["running"]),
        waiting=int(body["waiting"]),
        ranks=tuple(_rank(rank) for rank in body["ranks"]),
        wishes=_wishes(body.get("wishes", {})),
    )


def _wishes(body: Mapping[str, Any]) -> WishView:
    leader, draining = body.get("leader"), body.get("draining")
    return WishView(
        int(body.get("revision", 0)),
        None if leader is None else str(leader),
        None if draining is None else bool(draining),
    )


def _rank(body: Mapping[str, Any]) -> RankView:
    first, last = body["layers"]
    age, memory = body["heartbeat_age_s"], body["memory_bytes"]
    return RankView(
        rank=int(body["rank"]),
        node=str(body["node"]),
        state=str(body["state"]),
        layers=(int(first), int(last)),
        heartbeat_age=None if age is None else float(age),
        memory_bytes=None if memory is None else int(memory),
    )


@dataclass(frozen=True)
class Fault:
    """Why an epoch can't go on; `node`: whose fault, if anybody's."""

    reason: str
    node: str | None = None


class Watch:
    """Of one epoch.  Feed it what rank 0 answers, or that it does not."""

    def __init__(self, order: Sequence[str], patience: float) -> None:
        """`patience`: seconds without an answer after which rank 0 counts as dead, once it has answered."""
        self._order = tuple(order)
        self._patience = patience
        self._answered_at: float | None = None
        self.report: Report | None = None
        self.ready_at: float | None = None
        self.idle_since: float | None = None
        self.fault: Fault | None = None

    def answered(self, report: Report, now: float) -> None:
        """Rank 0 says how all are."""
        self._answered_at, self.report = now, report
        if report.ready and self.ready_at is None:
            self.ready_at = now
        if not report.idle:
            self.idle_since = None
        elif self.idle_since is None:
            self.idle_since = now
        # An intruder's or an older epoch's rank 0 would name other nodes.
        dead = [rank for rank in report.ranks if rank.state in DEAD_STATES]
        if report.fault and self.fault is None:
            node = dead[0].node if dead else None
            self.fault = Fault(report.fault, node if node in self._order else None)

    def is_suspicious(self, now: float) -> bool:
        """Whether somebody has been silent for half of what would be the end; needless to say of a fault."""
        if self._answered_at is None or self.report is None:
            return False
        ages = (rank.heartbeat_age or 0.0 for rank in self.report.ranks)
        return now - self._answered_at + max(ages, default=0.0) > self._patience / 2

    def give_up(self, fault: Fault | None) -> None:
        """For a reason that rank 0 does not know of, if there is one and none was known before."""
        self.fault = self.fault or fault

    def silent(self, now: float) -> None:
        """Rank 0 does not answer."""
        if self._answered_at is None or self.fault is not None:
            return  # its ports are not open yet
        silence = now - self._answered_at
        if silence > self._patience:
            leader = self._order[0]
            self.fault = Fault(f"rank 0 ({leader}) has not answered for {silence:.1f} s", leader)
