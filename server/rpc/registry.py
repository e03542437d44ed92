"""Which ranks there are and how they are: a pure object, events and the time in, snapshots out.

Times are seconds of any one monotonic clock.
"""

from __future__ import annotations

from dataclasses import dataclass

from server.rpc.errors import NotRegistered, Refused
from server.rpc.records import (
    LEADER,
    ClusterSnapshot,
    HealthPolicy,
    Heartbeat,
    RankReport,
    RankSnapshot,
    RankState,
    Registration,
    Versions,
)


@dataclass(frozen=True)
class _Member:
    registration: Registration
    policy: HealthPolicy  # as told to the rank in the last reply
    heard_at: float
    report: RankReport | None = None
    config_revision: int = 0


class ClusterRegistry:
    """The members of one launch of the ring.

    `policy` may be replaced at any time; each rank is judged by the one it was told last, so that a shorter
    interval kills nobody who has not heard of it.
    """

    def __init__(self, epoch: int, size: int, policy: HealthPolicy) -> None:
        self.epoch = epoch
        self.size = size
        self.policy = policy
        self._members: dict[int, _Member] = {}

    def register(self, registration: Registration, now: float) -> None:
        """Take a rank in.  Repeating the same registration is allowed: its reply may have got lost.

        Raises Refused with a sentence that names both sides of the contradiction.
        """
        self._check_launch(registration.epoch, registration.rank, registration.node)
        if registration.size != self.size:
            raise Refused(
                f"{_name(registration)} says the ring has {registration.size} ranks, "
                f"the coordinator has {self.size}"
            )
        known = self._members.get(registration.rank)
        if known is not None and known.registration == registration:
            return
        if known is not None:
            raise Refused(_taken(registration, known.registration))
        others = [member.registration for _, member in sorted(self._members.items())]
        for other in others:
            _check_same_model(registration, other)
            _check_versions(registration, other)
            if other.node == registration.node:
                raise Refused(f"{_name(registration)} has the name of rank {other.rank}")
        self._check_layers(registration)
        self._members[registration.rank] = _Member(registration, self.policy, heard_at=now)

    def heartbeat(self, beat: Heartbeat, now: float) -> None:
        """Note a sign of life; also of a rank that was silent for too long.

        Raises NotRegistered for an unknown rank, Refused for one of another launch or another node.
        """
        self._check_launch(beat.epoch, beat.rank, beat.node)
        member = self._members.get(beat.rank)
        if member is None:
            raise NotRegistered(f"rank {beat.rank} ({beat.node}) has not registered")
        if member.registration.node != beat.node:
            raise Refused(
                f"rank {beat.rank} is {member.registration.node}, the heartbeat says {beat.node}"
            )
        self._members[beat.rank] = _Member(
            member.registration, self.policy, now, beat.report, beat.config_revision
        )

    def snapshot(self, now: float, config_revision: int = 0) -> ClusterSnapshot:
        """Everything that is known at `now`."""
        ranks = tuple(self._observe(self._members[rank], now) for rank in sorted(self._members))
        return ClusterSnapshot(self.epoch, self.size, config_revision, ranks)

    def _observe(self, member: _Member, now: float) -> RankSnapshot:
        age = max(0.0, now - member.heard_at)
        report = member.report
        state, reason = RankState.STARTING, ""
        if report is not None:
            state, reason = report.state, report.reason
        # A rank that said it failed stays failed: its own reason says more than silence.
        if age > member.policy.patience_s and state is not RankState.FAILED:
            state = RankState.DEAD
            reason = f"no heartbeat for more than {member.policy.patience_s:g} s"
        return RankSnapshot(member.registration, report, member.config_revision, state, reason, age)

    def _check_launch(self, epoch: int, rank: int, node: str) -> None:
        if epoch != self.epoch:
            raise Refused(
                f"rank {rank} ({node}) belongs to epoch {epoch}, "
                f"the coordinator runs epoch {self.epoch}"
            )

    def _check_layers(self, registration: Registration) -> None:
        """Ranks hold all layers in rank order, without gap or overlap."""
        rank, start, end = registration.rank, registration.layer_start, registration.layer_end
        before, after = self._members.get(rank - 1), self._members.get(rank + 1)
        if rank == LEADER and start != 0:
            raise Refused(f"{_name(registration)} must begin with layer 0, it has {start}")
        if rank == self.size - 1 and end != registration.num_layers:
            raise Refused(
                f"{_name(registration)} is the last and must end with layer "
                f"{registration.num_layers - 1}, it ends with {end - 1}"
            )
        if before is not None and before.registration.layer_end != start:
            raise Refused(_gap(before.registration, registration))
        if after is not None and after.registration.layer_start != end:
            raise Refused(_gap(registration, after.registration))


def _name(registration: Registration) -> str:
    return f"rank {registration.rank} ({registration.node})"


def _taken(asking: Registration, holder: Registration) -> str:
    if asking.pid == holder.pid and asking.host == holder.host:
        return f"{_name(asking)} has already registered differently from process {asking.pid}"
    return (
        f"rank {asking.rank} is taken: {holder.node} registered it from process {holder.pid} "
        f"on {holder.host}, now {asking.node} asks for it from process {asking.pid} "
        f"on {asking.host}"
    )


def _gap(lower: Registration, upper: Registration) -> str:
    return (
        f"{_name(lower)} ends with layer {lower.layer_end - 1} "
        f"but {_name(upper)} begins with layer {upper.layer_start}"
    )


def _check_same_model(asking: Registration, other: Registration) -> None:
    mine = (asking.fingerprint, asking.num_layers)
    if mine != (other.fingerprint, other.num_layers):
        raise Refused(
            f"{_name(asking)} has model {asking.model} "
            f"({asking.num_layers} layers, fingerprint {asking.fingerprint}), {_name(other)} has "
            f"{other.model} ({other.num_layers} layers, fingerprint {other.fingerprint})"
        )


def _check_versions(asking: Registration, other: Registration) -> None:
    for label, mine, theirs in _compared(asking.versions, other.versions):
        if mine != theirs:
            raise Refused(f"{_name(asking)} runs {label} {mine}, {_name(other)} runs {theirs}")


def _compared(mine: Versions, theirs: Versions) -> tuple[tuple[str, str, str], ...]:
    return (
        ("mlx-cluster", mine.project, theirs.project),
        ("mlx", mine.mlx, theirs.mlx),
        ("mlx-lm", mine.mlx_lm, theirs.mlx_lm),
        # Patch releases of Python don't change what a model computes.
        ("Python", _minor(mine.python), _minor(theirs.python)),
    )


def _minor(version: str) -> str:
    return ".".join(version.split(".")[:2])
