"""The real scheduler against stages that exist only as step times: no MLX, no sockets, and a clock of its own.

What is modelled is the order of things in pipeline.engine and pipeline.worker.  Rank 0 chooses a step, computes
its own stage, takes the results that have arrived meanwhile, and chooses again; when there is nothing to choose
it sleeps until a result or a request comes.  A stage takes steps in the order of arrival: it builds the graph
once a step is announced, computes once its input is there, and hands on.  So a step's way through the stages
follows from the steps before it, and no queue of events is needed.
"""

from __future__ import annotations

import random
from bisect import bisect_left
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from pipeline.chunks import pairs
from pipeline.scheduler import Scheduler
from pipeline.steps import DecodeBatch, PrefillBatch, StepPlan

QUICKEST = 0.5  # of the mean: no noise makes a step faster


@dataclass(frozen=True)
class Curve:
    """Seconds over a size: straight between the points, beyond them along the nearest two or flat."""

    points: tuple[tuple[float, float], ...]  # at least two, by size

    @classmethod
    def line(cls, fixed: float, each: float) -> Curve:
        """`fixed` seconds, and `each` for one more."""
        return cls(((0.0, fixed), (1.0, fixed + each)))

    def __call__(self, size: float) -> float:
        right = bisect_left(self.points, size, key=lambda point: point[0])
        right = min(max(right, 1), len(self.points) - 1)
        (x0, y0), (x1, y1) = self.points[right - 1], self.points[right]
        if y1 < y0 and not x0 <= size <= x1:
            return y0 if size < x0 else y1
        return max(0.0, y0 + (y1 - y0) * (size - x0) / (x1 - x0))


@dataclass(frozen=True)
class StageTimes:
    """What one stage takes.  `overhead`: seconds of Python for each step, which pacing does not see."""

    decode: Curve  # over the sequences of a step
    prefill: Curve  # over the tokens of a chunk, at the beginning of a prompt
    overhead: float = 0.0
    attention: float = 0.0  # seconds more for each pair of tokens of which one attends to the other

    def mean(self, work: DecodeBatch | PrefillBatch) -> float:
        """Seconds of a step, on the average."""
        if isinstance(work, DecodeBatch):
            return self.decode(len(work.sequences))
        return self.prefill(work.tokens) + self.attention * work.attended

    def chunk(self, start: int, tokens: int) -> float:
        """Seconds of a chunk of one prompt, `start` tokens behind its beginning."""
        return self.prefill(tokens) + self.attention * pairs(start, tokens)


@dataclass(frozen=True)
class Network:
    """Each hop: seconds until a message is there, and bytes per second for hidden states."""

    latency: float = 0.0
    bandwidth: float = float("inf")
    token_bytes: int = 0  # of one token's hidden state


class Stages:
    """A ring of stages.  A step's compute times are the means, times one random factor each."""

    def __init__(
        self,
        stages: Sequence[StageTimes],
        network: Network | None = None,
        noise: float = 0.0,
        seed: int = 0,
    ) -> None:
        """`noise`: standard deviation of the factor around 1."""
        self._stages, self._network = stages, network or Network()
        self._noise, self._random = noise, random.Random(seed)
        self._free = [0.0] * len(stages)  # when each has done all it was given
        self._link_free = [0.0] * len(stages)
        self.busy = [0.0] * len(stages)  # seconds of compute and overhead so far

    def __len__(self) -> int:
        return len(self._stages)

    def run(self, plan: StepPlan, now: float) -> tuple[float, float, tuple[float, ...]]:
        """A step that rank 0 begins now: when rank 0 is free again, when the result comes, compute seconds."""
        work, network = plan.work, self._network
        if work is None:  # the stages only take note
            return now, now + network.latency * len(self), ()
        tokens = len(work.sequences) if isinstance(work, DecodeBatch) else work.tokens
        flight = network.token_bytes * tokens / network.bandwidth
        announced = ready = now
        seconds = []
        for rank, stage in enumerate(self._stages):
            took = stage.mean(work) * self._factor()
            built = max(self._free[rank], announced) + stage.overhead
            end = max(built, ready) + took
            self._free[rank] = end
            self._link_free[rank] = max(end, self._link_free[rank]) + flight
            self.busy[rank] += stage.overhead + took
            announced, ready = built + network.latency, self._link_free[rank] + network.latency
            seconds.append(took)
        alone = len(self) == 1
        return self._free[0], end if alone else end + network.latency, tuple(seconds)

    def _factor(self) -> float:
        if not self._noise:
            return 1.0
        return max(QUICKEST, self._random.gauss(1.0, self._noise))


@dataclass(frozen=True)
class Phase:
    """`streams` requests at a time until each stream has made `tokens` tokens on the average."""

    streams: int
    tokens: int


@dataclass(frozen=True)
class Arrival:
    """A request that comes `at` so many seconds after the start."""

    at: float
    prompt: int
    output: int


@dataclass(frozen=True)
class Load:
    """Closed loop: a request that ends is followed by the next.  Between phases streams come, or are cancelled.

    `stagger`: the first requests are shortened to different lengths, so that streams don't end together.
    `arrivals`: further requests, which come when they come.
    """

    phases: tuple[Phase, ...]
    prompt: int
    output: int
    stagger: bool = True
    requests: int | None = None  # in all; None: as many as the phases take
    long_prompt: int = 0  # tokens of one that arrives in the middle of the last phase
    warm_up: float = 0.3  # share of each phase's tokens that is not measured
    arrivals: tuple[Arrival, ...] = ()

    @classmethod
    def burst(cls, streams: int, prompt: int, output: int, each: int) -> Load:
        """All streams begin at once, with `each` requests one after the other; all of the time is measured."""
        phase = Phase(streams, each * output)
        return cls((phase,), prompt, output, stagger=False, requests=each * streams, warm_up=0.0)

    @classmethod
    def open(cls, arrivals: Iterable[Arrival]) -> Load:
        """Nothing but requests that don't wait for each other; all of the time is measured."""
        coming = tuple(sorted(arrivals, key=lambda arrival: arrival.at))
        return cls((Phase(0, 0),), prompt=1, output=1, warm_up=0.0, arrivals=coming)


@dataclass
class Measured:
    """One phase after its warm-up.  Times in seconds."""

    streams: int
    started: float
    ended: float = 0.0
    tokens: int = 0
    busy: tuple[float, ...] = ()  # of each stage
    gaps: list[float] = field(default_factory=list)  # between two tokens of a stream
    first_tokens: list[float] = field(default_factory=list)  # from a request's arrival
    moves: int = 0  # sequences that went to another group
    steps: int = 0  # of decoding
    groups: int = 0  # summed up over these

    @property
    def seconds(self) -> float:
        """How long it was."""
        return self.ended - self.started

    @property
    def tokens_per_s(self) -> float:
        """Output rate."""
        return self.tokens / self.seconds

    @property
    def utilisation(self) -> tuple[float, ...]:
        """The share of the time in which each stage was at work."""
        return tuple(busy / self.seconds for busy in self.busy)

    @property
    def mean_groups(self) -> float:
        """Micro-batches, mean over the steps."""
        return self.groups / max(1, self.steps)


@dataclass
class _Request:
    sequence: int
    to_make: int
    came: float
    last: float | None = None  # when its latest token came
    group: int | None = None


class Simulation:
    """Engine and clients in one.  `run` once; it ends when the load does."""

    def __init__(self, scheduler: Scheduler, stages: Stages, load: Load) -> None:
        self._scheduler, self._stages, self._load = scheduler, stages, load
        self._now = 0.0
        self._results: deque[tuple[float, StepPlan, tuple[float, ...]]] = deque()
        self._requests: dict[int, _Request] = {}
        self._submitted = 0
        self._coming = deque(load.arrivals)
        self._made = 0  # tokens in this phase
        self._measured: Measured | None = None
        self._long: int | None = None
        self._long_since: float | None = None
        self.long_wait: float | None = (
            None  # seconds from the long prompt's arrival to its first token
        )
        self.gaps_meanwhile: list[float] = []  # of the other streams
        self.total_tokens = 0

    @property
    def now(self) -> float:
        """Simulated seconds since the start."""
        return self._now

    def run(self) -> list[Measured]:
        """What each phase was like."""
        return [self._run_phase(phase, number) for number, phase in enumerate(self._load.phases)]

    def _run_phase(self, phase: Phase, number: int) -> Measured:
        self._made, self._measured = 0, None
        for sequence in list(self._requests)[phase.streams :]:
            del self._requests[sequence]
            self._scheduler.finish(sequence)
        self._streams = phase.streams
        for position in range(len(self._requests), phase.streams):
            self._submit(position if number == 0 and self._load.stagger else None)
        total = phase.streams * phase.tokens
        last = number == len(self._load.phases) - 1
        while self._goes_on(total):
            if self._measured is None and self._made >= self._load.warm_up * total:
                self._measured = self._begin_measuring(phase)
            if last and self._load.long_prompt and self._long is None and self._made > total / 2:
                self._submit_long()
            self._turn()
        return self._end_measuring()

    def _goes_on(self, total: int) -> bool:
        """Until the streams have made `total` tokens, and those that came besides have ended."""
        if self._load.arrivals:
            return bool(self._coming or self._requests)
        return bool(self._requests) and (self._made < total or self._long in self._requests)

    def _begin_measuring(self, phase: Phase) -> Measured:
        return Measured(phase.streams, self._now, busy=tuple(self._stages.busy))

    def _end_measuring(self) -> Measured:
        measured = self._measured
        assert measured is not None, "the phase has ended in its warm-up"
        measured.ended = self._now
        before, after = measured.busy, self._stages.busy
        measured.busy = tuple(b - a for a, b in zip(before, after, strict=True))
        return measured

    # the engine

    def _turn(self) -> None:
        """As the loop of pipeline.engine.Engine.run."""
        while self._coming and self._coming[0].at <= self._now:
            arrival = self._coming.popleft()
            self._add(arrival.prompt, arrival.output).came = arrival.at
        plan = self._scheduler.choose()
        if plan is not None:
            self._start(plan)
            self._take_arrived()
        elif not self._take_arrived():
            events = [self._results[0][0]] if self._results else []
            events += [self._coming[0].at] if self._coming else []
            assert events, "nothing is in flight, nobody comes, and nothing can be chosen"
            self._now = max(self._now, min(events))

    def _start(self, plan: StepPlan) -> None:
        if isinstance(plan.work, DecodeBatch):
            self._note_groups(plan.work)
        self._now, arrival, seconds = self._stages.run(plan, self._now)
        self._results.append((arrival, plan, seconds))

    def _take_arrived(self) -> bool:
        any_result = False
        while self._results and self._results[0][0] <= self._now:
            any_result = True
            _, plan, seconds = self._results.popleft()
            self._scheduler.absorb(plan.id, seconds)
            if isinstance(plan.work, DecodeBatch):
                for sequence in plan.work.sequences:
                    self._emit(sequence)
        return any_result

    def _note_groups(self, batch: DecodeBatch) -> None:
        measured = self._measured
        moved = 0
        for sequence in batch.sequences:
            request = self._requests.get(sequence)
            if request is not None:
                moved += request.group not in (None, batch.group)
                request.group = batch.group
        if measured is not None:
            measured.moves += moved
            measured.steps += 1
            measured.groups += sum(map(bool, self._scheduler.groups))

    # the clients

    def _submit(self, position: int | None = None) -> None:
        """`position`: of a first request among the streams, which gives it a length of its own."""
        load = self._load
        if load.requests is not None and self._submitted >= load.requests:
            return
        output = load.output
        if position is not None:
            output = max(1, output * (position + 1) // self._streams)
        self._add(load.prompt, output)
        self._submitted += 1

    def _add(self, prompt: int, output: int) -> _Request:
        sequence = self._scheduler.take_id()
        self._scheduler.add(sequence, prompt, output)
        self._requests[sequence] = request = _Request(sequence, output, self._now)
        return request

    def _submit_long(self) -> None:
        self._long_since = self._now
        self._long = self._add(self._load.long_prompt, 1).sequence

    def _emit(self, sequence: int) -> None:
        """A token has come."""
        request = self._requests.get(sequence)
        if request is None:  # cancelled meanwhile
            return
        self._note_gap(request)
        self._made += 1
        self.total_tokens += 1
        request.last = self._now
        request.to_make -= 1
        if not request.to_make:
            del self._requests[sequence]
            self._scheduler.finish(sequence)
            if sequence != self._long and not self._load.arrivals:
                self._submit()

    def _note_gap(self, request: _Request) -> None:
        gap = None if request.last is None else self._now - request.last
        if self._measured is not None:
            self._measured.tokens += 1
            if gap is None:
                self._measured.first_tokens.append(self._now - request.came)
            else:
                self._measured.gaps.append(gap)
        if self._long_since is None or self.long_wait is not None:
            return
        if gap is not None:
            self.gaps_meanwhile.append(gap)
        if request.sequence == self._long:
            self.long_wait = self._now - self._long_since


def ideal_rate(stages: Sequence[StageTimes], streams: int, prompt: int, output: int) -> float:
    """Tokens per second that nothing can exceed: whole groups, no overhead, latency or waiting for each other.

    The better of two bounds for each number of groups: a trip through all stages, and the busiest stage at work
    for all streams, which also prefills `prompt` - 1 tokens, at its best, for every `output` tokens.
    """
    best = 0.0
    for groups in range(1, streams + 1):
        small, larger = divmod(streams, groups)
        trip = sum(stage.decode(small + bool(larger)) for stage in stages)
        best = max(best, streams / max(trip, *(_work(s, streams, groups) for s in stages)))
    prefill = max(stage.prefill(prompt - 1) if prompt > 1 else 0.0 for stage in stages)
    return 1 / (1 / best + prefill / output) if prefill else best


def _work(stage: StageTimes, streams: int, groups: int) -> float:
    """Seconds of one stage for a token of every stream."""
    small, larger = divmod(streams, groups)
    return larger * stage.decode(small + 1) + (groups - larger) * stage.decode(small)
