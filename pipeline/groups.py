"""Micro-batches: which of the decoding sequences go through the stages together."""

from __future__ import annotations

from collections.abc import Callable, Container
from dataclasses import dataclass, field

from pipeline.limits import Limits
from pipeline.pacing import Pacing


@dataclass
class Between:
    """Prefill that went out since the last step of a group; predicted seconds of the slowest stage."""

    chunks: int = 0
    longest: float = 0.0  # of a single chunk
    extra: float = 0.0  # of all that made the group's next step wait

    def add(self, seconds: float, waits: bool) -> None:
        """One more chunk."""
        self.chunks += 1
        self.longest = max(self.longest, seconds)
        self.extra += seconds if waits else 0.0

    def merge(self, other: Between) -> None:
        """A member of another group comes; what went freely there adds to what goes freely here."""
        self.longest = max(self.longest, other.longest)
        self.extra = max(self.extra, other.extra + other.longest)


@dataclass(eq=False)
class Group:
    """A micro-batch.  `members` is the order on the stages, newcomers at the end.

    A member that came from another group stays at least until its first step here: the stages move it with that
    step, and keep its place in the old group until then.
    """

    id: int
    members: list[int] = field(default_factory=list)
    moved_in: set[int] = field(default_factory=set)  # members whose caches are in another group
    started: set[int] = field(default_factory=set)  # members that have had a step
    in_flight: int | None = None  # step id
    prefill: Between = field(default_factory=Between)

    @property
    def movable(self) -> list[int]:
        """Members that another group may take over: their next tokens and their places are known."""
        if self.in_flight is not None:
            return []
        return [sequence for sequence in self.members if sequence not in self.moved_in]

    def would_wait(self, most: int) -> bool:
        """Whether its next step would wait for another chunk: `most` keep the stages at work meanwhile."""
        chunks = self.prefill.chunks
        return chunks >= (1 if self.in_flight is None else most)

    def take(self, sequence: int, source: Group) -> None:
        """Take a movable member over from another group."""
        self.prefill.merge(source.prefill)
        if sequence in source.started:
            self.started.add(sequence)
        source.drop(sequence)
        self.members.append(sequence)
        self.moved_in.add(sequence)

    def drop(self, sequence: int) -> None:
        """One member less."""
        self.members.remove(sequence)
        self.moved_in.discard(sequence)
        self.started.discard(sequence)


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
    def active(self) -> list[Group]:
        """Groups with members."""
        return [group for group in self._groups.values() if group.members]

    @property
    def sequences(self) -> int:
        """Members of all groups."""
        return sum(len(group.members) for group in self._groups.values())

    @property
    def started(self) -> int:
        """Members that have had a step."""
        return sum(len(group.started) for group in self._groups.values())

    def ready(self, urgent: Container[Group] = ()) -> Group | None:
        """The group that has waited longest, of the urgent ones if one of these is ready.

        Steps go out in turn, so it is the first idle one of the dict order.
        """
        idle = [g for g in self._groups.values() if g.members and g.in_flight is None]
        return next((group for group in idle if group in urgent), idle[0] if idle else None)

    @property
    def chunks_between(self) -> int:
        """The most chunks of prefill that went out since the last step of a group."""
        return max((group.prefill.chunks for group in self.active), default=0)

    def note_chunk(self, seconds: float, most: int) -> None:
        """A chunk of prefill goes out; predicted seconds, `most` as for `Group.would_wait`."""
        for group in self._groups.values():
            group.prefill.add(seconds, group.would_wait(most))

    def send(self, group: Group, step: int, hold: bool = False) -> tuple[int, ...]:
        """The group's next step goes out; returns who takes part.

        `hold`: newcomers don't, if there are others.
        """
        self._groups[group.id] = self._groups.pop(group.id)
        group.in_flight, group.prefill = step, Between()
        held = [s for s in group.members if s not in group.started] if hold else []
        held = held if len(held) < len(group.members) else []
        batch = [s for s in group.members if s not in held]
        group.members = batch + held  # who comes later is behind who is there
        group.moved_in.difference_update(batch)
        group.started.update(batch)
        return tuple(batch)

    def land(self, group: int) -> None:
        """The group's step has come back."""
        self._groups[group].in_flight = None

    def join(self, sequence: int) -> None:
        """Put a sequence that is ready to decode to the smallest group, or an empty one if more are wanted."""
        active = self.active
        decoding = sum(len(group.members) for group in active) + 1
        more = len(active) < self._wanted(decoding)
        group = self._empty() if more else _smallest(active)
        group.members.append(sequence)

    def leave(self, sequence: int) -> None:
        """Take a sequence out of its group, if it is in one."""
        for group in self._groups.values():
            if sequence in group.members:
                group.drop(sequence)

    def rebalance(self) -> None:
        """Move sequences between groups that are not in flight, towards the wanted number of equal groups."""
        active = self.active
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
                group.prefill = Between()  # nobody has waited here
                return group
        group = Group(next(i for i in range(len(self._groups) + 1) if i not in self._groups))
        self._groups[group.id] = group
        return group

    def _move(self, sequence: int, source: Group, target: Group) -> None:
        """It has waited with the source, so the target's turn comes right after that one's, or earlier."""
        target.take(sequence, source)
        order = list(self._groups)
        if target.in_flight is None and order.index(target.id) > order.index(source.id) + 1:
            order.remove(target.id)
            order.insert(order.index(source.id) + 1, target.id)
            self._groups = {i: self._groups[i] for i in order}

    def _dissolve(self, active: list[Group]) -> None:
        """Spread the smallest group over the others."""
        whole = [group for group in active if len(group.movable) == len(group.members)]
        victim = min(whole, key=lambda g: (len(g.members), -g.id), default=None)
        if victim is None:
            return
        others = [group for group in active if group is not victim]
        for sequence in victim.movable:
            self._move(sequence, victim, _smallest(others))

    def _split(self, active: list[Group], sequences: int, wanted: int) -> None:
        """Move what the largest group has above its share into an empty one."""
        share = -(-sequences // wanted)
        donor = max(active, key=lambda g: (len(g.movable), -g.id))
        above = min(len(donor.members) - share, share)
        if above <= 0 or not donor.movable:
            return
        group = self._empty()
        for sequence in donor.movable[-above:]:
            self._move(sequence, donor, group)

    def _level(self, active: list[Group]) -> None:
        """Move one member from a large group to the smallest."""
        donor = max(active, key=lambda g: (len(g.movable), -g.id), default=None)
        if donor is None or not donor.movable:
            return
        poorest = _smallest(active)
        if len(donor.members) - len(poorest.members) >= 2:
            self._move(donor.movable[-1], donor, poorest)


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


def expected_groups(limits: Limits, pacing: Pacing, sequences: int) -> int:
    """What `wanted_groups` would come to; nothing is noted."""
    fewest = -(-sequences // limits.group_size)
    if limits.group_size == 1 or limits.window == 1:
        return fewest
    wanted = pacing.expected_groups(sequences) if limits.groups is None else limits.groups
    return max(fewest, min(wanted, sequences))
