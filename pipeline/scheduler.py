"""Which step comes next: a pure object, events in, work out.  No clock, socket or array inside.

Continuous batching with micro-batches: sequences join and leave between steps; decoding sequences live in
groups, each group has at most one step in flight, and several groups fill the stages one behind the other.
A prompt is cut into chunks which follow each other through the stages without waiting; chunks and decode steps
take turns, so that a long prompt delays running streams by a bounded number of chunks.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field, replace

from pipeline.errors import ContextTooLong, QueueFull
from pipeline.pacing import Pacing


@dataclass(frozen=True)
class Limits:
    """What the scheduler may use.  Token counts are per sequence unless said otherwise."""

    stages: int
    max_requests: int  # running and waiting together
    max_running: int  # sequences that hold caches
    max_group: int  # sequences in one micro-batch; 1 where the architecture can't batch
    prefill_chunk: int  # tokens
    context: int | None = None  # prompt + output of one sequence; None: the model does not say
    kv_tokens: int | None = (
        None  # all running sequences together, on the tightest stage; None: no limit
    )
    max_prefilling: int = 4  # prompts that take turns, so that a short one overtakes a long one
    groups: int | None = None  # fixed number of micro-batches; None: as Pacing measures
    loops: int = 1  # times the hidden state goes round; such models can't have two steps in flight

    @property
    def window(self) -> int:
        """Steps in flight: one in each stage and one on its way to each."""
        return 1 if self.loops > 1 else 2 * self.stages


@dataclass
class Sequence:
    """One request as the scheduler sees it."""

    id: int
    prompt: int  # tokens, at least 1
    max_tokens: int
    prefilled: int = 0  # tokens of the prompt that were handed out in chunks

    @property
    def to_prefill(self) -> int:
        """Prompt tokens still to be handed out.  The last one is fed by the first decode step."""
        return self.prompt - 1 - self.prefilled

    @property
    def kv_tokens(self) -> int:
        """Cache entries that it can come to need."""
        return self.prompt + self.max_tokens


@dataclass(frozen=True)
class PrefillChunk:
    """Tokens [start, end) of the prompt of one sequence."""

    sequence: int
    start: int
    end: int


@dataclass(frozen=True)
class DecodeBatch:
    """One token for each of `sequences`, in this order."""

    group: int
    sequences: tuple[int, ...]


@dataclass(frozen=True)
class StepPlan:
    """What every stage does next; see pipeline.frames.Step."""

    id: int
    released: tuple[int, ...] = ()
    admitted: tuple[int, ...] = ()
    work: PrefillChunk | DecodeBatch | None = None


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


class Scheduler:
    """See the module's text.  One thread; step ids count up from 0."""

    def __init__(self, limits: Limits, pacing: Pacing | None = None) -> None:
        self.limits = limits
        self.pacing = pacing or Pacing(limits.stages)
        self._waiting: deque[Sequence] = deque()
        self._running: dict[int, Sequence] = {}
        self._prefilling: deque[Sequence] = deque()  # in turn
        self._groups: dict[int, Group] = {}
        self._released: list[int] = []
        self._admitted: list[int] = []
        self._in_flight: dict[int, StepPlan] = {}
        self._next_step = 0
        self._decodes_since_prefill = 0

    @property
    def waiting(self) -> int:
        """Sequences without caches."""
        return len(self._waiting)

    @property
    def running(self) -> int:
        """Sequences with caches."""
        return len(self._running)

    @property
    def groups(self) -> tuple[tuple[int, ...], ...]:
        """Members of each micro-batch, for display; other threads may ask."""
        return tuple(tuple(group.members) for group in list(self._groups.values()))

    @property
    def in_flight(self) -> int:
        """Steps without a result."""
        return len(self._in_flight)

    @property
    def idle(self) -> bool:
        """Nothing runs, waits, is in flight or is to be released."""
        return not (self._waiting or self._running or self._released or self._in_flight)

    def reconfigure(
        self, max_requests: int, max_group: int, prefill_chunk: int | None = None
    ) -> None:
        """Change limits between two steps; what runs already goes on.  None leaves a limit as it is."""
        self.limits = replace(
            self.limits,
            max_requests=max_requests,
            max_running=max_requests,
            max_group=max_group if self.limits.max_group > 1 else 1,
            prefill_chunk=prefill_chunk or self.limits.prefill_chunk,
        )

    # events

    def add(self, sequence: int, prompt: int, max_tokens: int) -> None:
        """Queue a sequence with `prompt` tokens.

        Raises QueueFull, or ContextTooLong if it could never run.
        """
        limits = self.limits
        asked = prompt + max_tokens
        for limit in (limits.context, limits.kv_tokens):
            if limit is not None and asked > limit:
                raise ContextTooLong(asked, limit)
        if len(self._waiting) + len(self._running) >= limits.max_requests:
            raise QueueFull(f"{limits.max_requests} requests are running or waiting")
        self._waiting.append(Sequence(sequence, prompt, max_tokens))

    def finish(self, sequence: int) -> None:
        """The sequence has ended or was cancelled: its caches go with the next step.

        Unknown ids are ignored: a cancellation may come after the last token.
        """
        if self._running.pop(sequence, None) is None:
            self._waiting = deque(s for s in self._waiting if s.id != sequence)
            return
        self._prefilling = deque(s for s in self._prefilling if s.id != sequence)
        for group in self._groups.values():
            if sequence in group.members:
                group.members.remove(sequence)
                group.moved_in.discard(sequence)
        if sequence in self._admitted:
            self._admitted.remove(sequence)  # the stages have not heard of it
        else:
            self._released.append(sequence)

    def absorb(self, step: int, seconds: tuple[float, ...] = ()) -> StepPlan:
        """Step `step` has left the last stage; `seconds` of compute per stage.  Returns what it was.

        Raises KeyError if it is not in flight.
        """
        plan = self._in_flight.pop(step)
        if isinstance(plan.work, DecodeBatch):
            self._groups[plan.work.group].in_flight = None
            if seconds:
                self.pacing.observe(len(plan.work.sequences), seconds)
            self._rebalance()
        return plan

    # choice

    def choose(self) -> StepPlan | None:
        """The next step, or None until something is absorbed or added."""
        if len(self._in_flight) >= self.limits.window:
            return None
        self._admit()
        work = self._choose_work()
        if work is None and not self._released:
            return None
        plan = StepPlan(self._next_step, tuple(self._released), tuple(self._admitted), work)
        self._released.clear()
        self._admitted.clear()
        self._in_flight[plan.id] = plan
        self._next_step += 1
        return plan

    def _admit(self) -> None:
        """First come, first served: a large request is not overtaken for ever by small ones."""
        limits = self.limits
        used = sum(s.kv_tokens for s in self._running.values())
        while self._waiting and len(self._running) < limits.max_running:
            head = self._waiting[0]
            if limits.kv_tokens is not None and used + head.kv_tokens > limits.kv_tokens:
                return
            if head.to_prefill and len(self._prefilling) >= limits.max_prefilling:
                return
            self._waiting.popleft()
            used += head.kv_tokens
            self._running[head.id] = head
            self._admitted.append(head.id)
            if head.to_prefill:
                self._prefilling.append(head)
            else:
                self._join(head.id)

    def _choose_work(self) -> PrefillChunk | DecodeBatch | None:
        ready = self._ready_group()
        if self._may_prefill() and (
            ready is None or self._decodes_since_prefill >= self._active_groups
        ):
            self._decodes_since_prefill = 0
            return self._next_chunk()
        if ready is None:
            return None
        self._decodes_since_prefill += 1
        self._groups[ready.id] = self._groups.pop(ready.id)  # to the end of the turn
        ready.in_flight = self._next_step
        ready.moved_in.clear()
        return DecodeBatch(ready.id, tuple(ready.members))

    def _may_prefill(self) -> bool:
        """While streams run, at most one chunk per stage is under way: decode steps queue behind them."""
        if not self._prefilling:
            return False
        chunks = sum(isinstance(p.work, PrefillChunk) for p in self._in_flight.values())
        return self._active_groups == 0 or chunks < self.limits.stages

    def _next_chunk(self) -> PrefillChunk:
        sequence = self._prefilling.popleft()
        start = sequence.prefilled
        sequence.prefilled += min(self.limits.prefill_chunk, sequence.to_prefill)
        if sequence.to_prefill:
            self._prefilling.append(sequence)
        else:
            self._join(sequence.id)
        return PrefillChunk(sequence.id, start, sequence.prefilled)

    @property
    def _active_groups(self) -> int:
        return sum(bool(group.members) for group in self._groups.values())

    def _ready_group(self) -> Group | None:
        """The group that has waited longest: steps go out in turn, so the first idle one of the dict order."""
        for group in self._groups.values():
            if group.members and group.in_flight is None:
                return group
        return None

    # groups

    def _wanted_groups(self, sequences: int) -> int:
        fewest = -(-sequences // self.limits.max_group)
        if self.limits.max_group == 1:
            return sequences
        if self.limits.window == 1:
            return fewest  # a second group would only wait for the first
        if self.limits.groups is not None:
            return max(fewest, min(self.limits.groups, sequences))
        return max(fewest, self.pacing.groups(sequences))

    def _join(self, sequence: int) -> None:
        """Put a sequence that is ready to decode to the smallest group, or an empty one if more are wanted."""
        active = [group for group in self._groups.values() if group.members]
        decoding = sum(len(group.members) for group in active) + 1
        more = len(active) < self._wanted_groups(decoding)
        group = self._empty_group() if more else _smallest(active)
        group.members.append(sequence)

    def _empty_group(self) -> Group:
        for group in self._groups.values():
            if not group.members and group.in_flight is None:
                return group
        group = Group(next(i for i in range(len(self._groups) + 1) if i not in self._groups))
        self._groups[group.id] = group
        return group

    def _rebalance(self) -> None:
        """Move sequences between groups that are not in flight, towards the wanted number of equal groups."""
        active = [group for group in self._groups.values() if group.members]
        sequences = sum(len(group.members) for group in active)
        wanted = self._wanted_groups(sequences)
        if len(active) > wanted:
            self._dissolve(active)
        elif active and len(active) < wanted:
            self._split(active, sequences, wanted)
        else:
            self._level(active)

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
        group = self._empty_group()
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

    def check(self) -> None:
        """Raise AssertionError if a sequence is in two places or none: for tests and for idle self-checks."""
        grouped = [s for group in self._groups.values() for s in group.members]
        prefilling = [s.id for s in self._prefilling]
        places = grouped + prefilling
        assert len(places) == len(set(places)), f"a sequence is in two places: {places}"
        assert set(places) == set(self._running), f"{places} are placed, {list(self._running)} run"
        assert not set(self._released) & set(self._running), "a running sequence is to be released"
        assert all(g.moved_in <= set(g.members) for g in self._groups.values()), "a ghost has moved"
        flights = {g.in_flight for g in self._groups.values() if g.in_flight is not None}
        assert flights <= set(self._in_flight), "a group waits for a step that is not in flight"


def _smallest(groups: list[Group]) -> Group:
    return min(groups, key=lambda g: (len(g.members), g.id))
