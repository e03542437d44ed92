"""What to do next: a pure function of what was observed.  No clock, no process, no socket.

A cluster runs in epochs, each one launch of the ring over some nodes in some order.  Between two epochs nothing
runs.  What happened in the past is in `History`, what the operator wants in `Wishes`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import Enum

from launcher.breaker import BreakerPolicy, Record
from launcher.election import Candidate, Strategy, elect


class Phase(Enum):
    """How far an epoch has come."""

    STARTING = "starting"
    READY = "ready"
    ENDING = "ending"


class Cause(Enum):
    """How an epoch ended."""

    STOPPED = "stopped"  # by the launcher, for a change
    DIED = "died"  # after it was ready
    NEVER_STARTED = "never started"
    TOO_FEW = "too few"  # the model does not fit on its nodes


@dataclass(frozen=True)
class Node:
    """A configured node.  `missed_heartbeats` and the loads are of its rank in the last epoch."""

    name: str
    up: bool = True  # commands can be run on it, as far as is known
    record: Record = field(default_factory=Record)
    missed_heartbeats: float = 0.0
    cpu_percent: float | None = None
    memory_percent: float | None = None


@dataclass(frozen=True)
class Epoch:
    """The launch at hand.  `order`: names of nodes, by rank.  Times as in `Observed.now`."""

    order: tuple[str, ...]
    phase: Phase
    ready_at: float | None = None
    idle_since: float | None = None  # None: requests are under way
    fault: str = ""  # why it can't go on


@dataclass(frozen=True)
class End:
    """The end of the last epoch."""

    at: float
    cause: Cause
    reason: str
    order: tuple[str, ...]


@dataclass(frozen=True)
class History:
    """What is remembered.  `failed_starts`: epochs in a row that were never ready."""

    last: End | None = None
    ever_ready: bool = False
    failed_starts: int = 0
    last_leader: str | None = None
    ready_epoch: int = 0  # the number of the last epoch that was ready
    too_small: tuple[frozenset[str], ...] = ()  # sets of nodes on which the model did not fit


@dataclass(frozen=True)
class Wishes:
    """What the operator asked for and has not got yet."""

    stop: bool = False
    restart: str = ""  # why, or nothing
    leader: str | None = None


@dataclass(frozen=True)
class Policy:
    """From the configuration; times in seconds."""

    strategy: Strategy
    breaker: BreakerPolicy
    backoff_initial: float
    backoff_max: float
    idle_before_change: float
    rotation_interval: float


@dataclass(frozen=True)
class Observed:
    """Everything that a decision depends on.  `nodes`: in the configured order."""

    now: float
    nodes: tuple[Node, ...]
    epoch: Epoch | None = None
    history: History = History()
    wishes: Wishes = Wishes()


@dataclass(frozen=True)
class Start:
    """Launch these nodes, the leader first."""

    order: tuple[str, ...]


@dataclass(frozen=True)
class Stop:
    """End the epoch; `at_once`: it is broken, nobody has to be asked."""

    reason: str
    at_once: bool = False


@dataclass(frozen=True)
class Wait:
    """Look again when something happens, at `until` at the latest; `reason`: why nothing runs, or why what
    runs is not changed as the configuration wants it; else empty.

    `permanent`: as long as no node comes, nothing will.
    """

    until: float
    reason: str = ""
    permanent: bool = False


@dataclass(frozen=True)
class GiveUp:
    """End the launcher: starting again would fail again."""

    reason: str


@dataclass(frozen=True)
class Finish:
    """All is as asked: end the launcher."""


Action = Start | Stop | Wait | GiveUp | Finish

LOOK_AGAIN = 60.0  # seconds, where no time is known at which anything changes


def next_action(observed: Observed, policy: Policy) -> Action:
    """The one thing to do now."""
    if observed.epoch is not None:
        return _while_running(observed, observed.epoch, policy)
    if observed.wishes.stop:
        return Finish()
    return _while_down(observed, policy)


def available(observed: Observed) -> tuple[Node, ...]:
    """The nodes that can take part."""
    return tuple(n for n in observed.nodes if n.up and not n.record.is_held(observed.now))


def _while_running(observed: Observed, epoch: Epoch, policy: Policy) -> Action:
    if epoch.phase is Phase.ENDING:
        return Wait(observed.now + LOOK_AGAIN)
    if observed.wishes.stop:
        return Stop("stopped")
    if epoch.fault:
        return Stop(epoch.fault, at_once=True)
    if epoch.phase is Phase.STARTING:
        return Wait(observed.now + LOOK_AGAIN)
    if observed.wishes.restart:
        return Stop(observed.wishes.restart)
    return _improve(observed, epoch, policy)


def _improve(observed: Observed, epoch: Epoch, policy: Policy) -> Action:
    """Changes of a ring that works, which nobody has to have: none is worth one that can't start."""
    nodes = _names(available(observed))
    if not nodes or _is_too_small(observed, frozenset(nodes)):
        gone = ", ".join(_gone(observed, epoch))
        others = (
            f"on {', '.join(nodes)} the model does not fit" if nodes else "nobody else is there"
        )
        return Wait(_next_change(observed), f"{gone} can't leave: {others}" if gone else "")
    leader = observed.wishes.leader
    if leader in nodes and leader != epoch.order[0]:
        return Stop(f"{leader} is to lead")
    return _when_idle(observed, epoch, policy)


def _when_idle(observed: Observed, epoch: Epoch, policy: Policy) -> Action:
    """Changes that can wait for an idle moment."""
    due = [_next_change(observed), observed.now + LOOK_AGAIN]
    gone = _gone(observed, epoch)
    back = [name for name in _names(available(observed)) if name not in epoch.order]
    changes = [f"{', '.join(gone)} no longer belongs to it"] if gone else []
    changes += [f"{', '.join(back)} can take part"] if back else []
    why = ", ".join(changes)
    rotates = policy.strategy == "round_robin" and observed.wishes.leader is None
    if rotates and epoch.ready_at is not None and len(epoch.order) > 1:
        rotation = epoch.ready_at + policy.rotation_interval
        due.append(rotation)
        if not why and observed.now >= rotation:
            why = "the leader rotates"
    if why and epoch.idle_since is not None:
        quiet = epoch.idle_since + policy.idle_before_change
        if observed.now >= quiet:
            return Stop(why)
        due.append(quiet)
    return Wait(min(time for time in due if time > observed.now))


def _gone(observed: Observed, epoch: Epoch) -> list[str]:
    """Who runs and is no longer configured."""
    return [name for name in epoch.order if name not in _names(observed.nodes)]


def _while_down(observed: Observed, policy: Policy) -> Action:
    now, history, last = observed.now, observed.history, observed.history.last
    if last is not None and not history.ever_ready and last.cause is not Cause.STOPPED:
        return GiveUp(last.reason)
    nodes = available(observed)
    if not nodes:
        return _nobody(observed)
    if _is_too_small(observed, frozenset(_names(nodes))):
        reason = last.reason if last is not None else "the model does not fit"
        missing = ", ".join(n.name for n in observed.nodes if n not in nodes)
        waiting = f"; waiting for {missing}" if missing else ""
        return Wait(_next_change(observed), f"{reason}{waiting}", permanent=True)
    start_at = last.at + _backoff(history.failed_starts, policy) if last is not None else now
    if now < start_at:
        return Wait(start_at, last.reason if last is not None else "")
    candidates = [
        Candidate(
            n.name,
            n.record.recent(policy.breaker, now),
            n.missed_heartbeats,
            n.cpu_percent,
            n.memory_percent,
        )
        for n in nodes
    ]
    order = elect(candidates, policy.strategy, history.last_leader, observed.wishes.leader)
    return Start(order)


def _nobody(observed: Observed) -> Wait:
    held = [n for n in observed.nodes if n.up]
    down = [n.name for n in observed.nodes if not n.up]
    reasons = []
    if down:
        reasons.append(f"{', '.join(down)} can't be reached")
    if held:
        reasons.append(f"{', '.join(n.name for n in held)} failed too often")
    # None of them is gone for good: it may have been the launcher's own link that was down.
    return Wait(_next_change(observed), " and ".join(reasons))


def _next_change(observed: Observed) -> float:
    """When the next node is let in again."""
    held = [n.record.held_until for n in observed.nodes if n.up and n.record.is_held(observed.now)]
    return min(held, default=observed.now + LOOK_AGAIN)


def _is_too_small(observed: Observed, nodes: frozenset[str]) -> bool:
    """Whether the model is known not to fit on `nodes`: nor on more of them."""
    return any(nodes <= seen for seen in observed.history.too_small)


def _backoff(failed_starts: int, policy: Policy) -> float:
    """Seconds to wait after so many starts in a row that came to nothing."""
    if failed_starts == 0:
        return 0.0
    return min(policy.backoff_max, policy.backoff_initial * 2.0 ** min(failed_starts - 1, 64))


def _names(nodes: tuple[Node, ...]) -> tuple[str, ...]:
    return tuple(node.name for node in nodes)


def after(history: History, end: End) -> History:
    """What is remembered once an epoch has ended."""
    died_early = end.cause is Cause.NEVER_STARTED
    too_small = history.too_small
    if end.cause is Cause.TOO_FEW:
        too_small = (*too_small, frozenset(end.order))
    return replace(
        history,
        last=end,
        failed_starts=history.failed_starts + 1 if died_early else history.failed_starts,
        last_leader=end.order[0],
        too_small=too_small,
    )


def ready(history: History, epoch: int) -> History:
    """What is remembered once epoch number `epoch` is ready."""
    return replace(history, ever_ready=True, failed_starts=0, ready_epoch=epoch)


def blame(
    records: Mapping[str, Record], node: str, policy: BreakerPolicy, now: float
) -> dict[str, Record]:
    """The records after a failure of `node`."""
    return {**records, node: records.get(node, Record()).failed(policy, now)}
