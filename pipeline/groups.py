"""Micro-batches: which of the decoding sequences go through the stages together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from pipeline.limits import Limits
from pipeline.pacing import Pacing


@dataclass
class Group:
    """A micro-batch.  `members` is the order on the stages, newcomers at the end.

    A member that came from another group stays at least until its first step here: the stages move it with that
    step, and keep its place in the old group until then.
    """

    id: int
    members: list[int] = field(default_factory=list)
    moved_in: set[int] = field(default_factory=set)  # members whose caches are in another group
    in_flight: int | None = None  # step id
    chunks: int = 0  # of prefill that went out since its last step

    @property
    def movable(self) -> list[int]:
        """Members that another group may take over: their next tokens and their places are known."""
        if self.in_flight is not None:
            return []
        return [sequence for sequence in self.members if sequence not in self.moved_in]

    def take(self, sequence: int, source: Group) -> None:
        """Take a movable member over from another group."""
        source.members.remove(sequence)
        self.members.append(sequence)
        self.moved_in.add(sequence)


class Groups:
    """All micro-batches, levelled towards the wanted number of equal ones."""

    def __init__(self, wanted: Callable[[int], int]) -> None:
        """`wanted`: the number of groups for a number of decoding sequences."""
        self._wanted = wanted
        self._groups: dict[int, Group] = {}  # in turn: the one that went out last is last

    @property
    def members(self) -> tuple[tuple[int, ...], ...]:
        """Members of each group, for display; other threads may ask."""
        return tuple(tuple(group.members) for group in list(self._groups.values()))

    @property
    def active(self) -> int:
        """Groups with members."""
        return len(self._active)

    @property
    def _active(self) -> list[Group]:
        return [group for group in self._groups.values() if group.members]

    def ready(self) -> Group | None:
        """The group that has waited longest: steps go out in turn, so the first idle one of the dict order."""
        for group in self._groups.values():
            if group.members and group.in_flight is None:
                return group
        return None

    @property
    def chunks_between(self) -> int:
        """The most chunks of prefill that went out since the last step of a group."""
        return max((group.chunks for group in self._active), default=0)

    def note_chunk(self) -> None:
        """A chunk of prefill goes out."""
        for group in self._groups.values():
            group.chunks += 1

    def send(self, group: Group, step: int) -> None:
        """The group's next step goes out."""
        self._groups[group.id] = self._groups.pop(group.id)
        group.in_flight, group.chunks = step, 0
        group.moved_in.clear()

    def land(self, group: int) -> None:
        """The group's step has come back."""
        self._groups[group].in_flight = None

    def join(self, sequence: int) -> None:
        """Put a sequence that is ready to decode to the smallest group, or an empty one if more are wanted."""
        active = self._active
        decoding = sum(len(group.members) for group in active) + 1
        more = len(active) < self._wanted(decoding)
        group = self._empty() if more else _smallest(active)
        group.members.append(sequence)

    def leave(self, sequence: int) -> None:
        """Take a sequence out of its group, if it is in one."""
        for group in self._groups.values():
            if sequence in group.members:
                group.members.remove(sequence)
                group.moved_in.discard(sequence)

    def rebalance(self) -> None:
        """Move sequences between groups that are not in flight, towards the wanted number of equal groups."""
        active = self._active
        sequences = sum(len(group.members) for group in active)
        wanted = self._wanted(sequences)
        if len(active) > wanted:
            self._dissolve(active)
        elif active and len(active) < wanted:
            self._split(active, sequences, wanted)
        else:
            self._level(active)

    def check(self, in_flight: set[int]) -> None:
        """Raise AssertionError where a group contradicts itself, or the steps that are in flight."""
        groups = self._groups.values()
        assert all(g.moved_in <= set(g.members) for g in groups), "a ghost has moved"
        flights = {g.in_flight for g in groups if g.in_flight is not None}
        assert flights <= in_flight, "a group waits for a step that is not in flight"

    def _empty(self) -> Group:
        for group in self._groups.values():
            if not group.members and group.in_flight is None:
                return group
        group = Group(next(i for i in range(len(self._groups) + 1) if i not in self._groups))
        self._groups[group.id] = group
        return group

    def _dissolve(self, active: list[Group]) -> None:
        """Spread the smallest group over the others."""
        whole = [group for group in active if len(group.movable) == len(group.members)]
        victim = min(whole, key=lambda g: (len(g.members), -g.id), default=None)
        if victim is None:
            return
        others = [group for group in active if group is not victim]
        for sequence in victim.movable:
            _smallest(others).take(sequence, victim)

    def _split(self, active: list[Group], sequences: int, wanted: int) -> None:
        """Move what the largest group has above its share into an empty one."""
        share = -(-sequences // wanted)
        donor = max(active, key=lambda g: (len(g.movable), -g.id))
        above = min(len(donor.members) - share, share)
        if above <= 0 or not donor.movable:
            return
        group = self._empty()
        for sequence in donor.movable[-above:]:
            group.take(sequence, donor)

    def _level(self, active: list[Group]) -> None:
        """Move one member from a large group to the smallest."""
        donor = max(active, key=lambda g: (len(g.movable), -g.id), default=None)
        if donor is None or not donor.movable:
            return
        poorest = _smallest(active)
        if len(donor.members) - len(poorest.members) >= 2:
            poorest.take(donor.movable[-1], donor)


def _smallest(groups: list[Group]) -> Group:
    return min(groups, key=lambda g: (len(g.members), g.id))


def wanted_groups(limits: Limits, pacing: Pacing, sequences: int) -> int:
    """Micro-batches for `sequences` that decode: as configured, as must be, or as the step times suggest."""
    settle = pacing.settle
    if limits.group_size == 1:
        return settle(sequences, sequences, "a micro-batch is one sequence here")
    fewest = -(-sequences // limits.group_size)
    if limits.window == 1:
        return settle(sequences, fewest, "a second one would wait for the first: the model loops")
    if limits.groups is not None:
        fixed = max(fewest, min(limits.groups, sequences))
        return settle(sequences, fixed, f"scheduler.groups is {limits.groups}")
    wanted = pacing.groups(sequences)
    if wanted >= fewest:
        return wanted
    return settle(sequences, fewest, f"more than {limits.group_size} are not put together")
