"""How many micro-batches to keep in flight, and how much of a prompt to take at a time: from measured times.

With S stages and G groups of B/G sequences, a sequence gets its next token once per cycle, which takes at least

    trip = sum over stages of T(B/G)          one way through the pipeline, and
    work = G * slowest T(B/G)                 what the slowest stage has to do for all groups.

Where T is flat (memory-bound) one group is as good as any; where T grows with the batch (compute-bound), S
groups are up to S times faster.  T is fitted as a straight line.  Steps never take exactly T, and
with trip = work every delay of one group is a delay of all: rings whose times vary by a share v take about

    cycle(G) = (trip^p + work^p)^(1/p)  with p = 1/v

so a group or two more than there are stages pay where they are cheap.  Prefill that goes on beside, P seconds
in a cycle, adds to the work, and to the trip where it is in a group's way: P/G of it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from pipeline.chunks import ChunkSizes, Cost
from pipeline.stalls import OUTLIER, Stalls

DECAY = 0.1  # weight of the newest observation in the running mean of its batch size
SHARE_DECAY = 0.02  # weight of the newest step in what the stages' shares and v are taken from
GAIN = 0.02  # more groups must promise this much less time, so that noise does not move sequences
LOSS = 0.01  # fewer groups may cost this much more: each group adds steps, which T does not include
FORGET = 1024  # observations after which a batch size that no longer occurs is dropped
FORGET_ALL = 512  # times the stages: even if only one is left, as what was measured may be wrong
PROBE = 24  # observations of a single batch size after which another one is tried
SETTLED = 4  # observations of a size from which on they are averaged
LEAST_NOISE, MOST_NOISE = 0.04, 0.5  # v: below, the hops that T does not include would be forgotten
MEMORY = 0.03  # weight of the newest comparison of group numbers: a request that ends moves nobody
JUMP = 0.25  # change of the number of sequences, as a share, after which comparisons start anew

# Weights, times v^2, of "T is flat" and "a stage's line is its share of the whole line" in the fits: DECAY / 2,
# for running means, over the square of what is likely.  Likely slopes are 0.5 T/B; a stage's own part, 0.1.
FLATNESS, LIKENESS = 0.2, 5.0

SMALLEST_CHUNK = 8  # tokens
ALIGNED = 32  # larger chunks are a multiple of it
MOST_PREFILL = 0.5  # of the decoding work: a long prompt passes, the streams stay as they were
MIX_MEMORY = 2048  # decoded tokens after which what was prefilled beside them counts half
MARGIN = 0.8  # of the bound on inter-token time that is planned for; the rest is for noise
MARGIN_OF_ONE = (
    0.6  # the same with one stage: what one step takes longer, no other stage makes up for
)
OTHERS = 1.5  # rounds of decode steps that can go by between two steps of a stream, with chunks among them

Line = tuple[float, float]  # seconds at batch size 0, and for each sequence more


@dataclass(frozen=True)
class Choice:
    """A number of micro-batches, what it was chosen from, and why.  Times in seconds."""

    sequences: int
    groups: int
    reason: str
    fixed: float | None = None  # T(B) = fixed + slope * B of the slowest stage; None: not known yet
    slope: float | None = None
    noise: float | None = None  # standard deviation of step times, as a share of them
    cycles: tuple[
        float, ...
    ] = ()  # predicted, between two tokens of a sequence with 1, 2, ... groups


@dataclass
class _Mean:
    """Step times of one batch size."""

    stages: list[float]  # seconds
    last: int  # number of the observation
    seen: int = 0


class Pacing:
    """Measures and chooses.  Pure: times are handed in, in seconds.  Other threads may read `choice`."""

    def __init__(self, stages: int) -> None:
        self.stages = stages
        self.chunks = ChunkSizes(stages)
        self.choice = Choice(0, 1, "nothing has run yet")
        self._means: dict[int, _Mean] = {}
        self._count = 0
        self._shares = [1 / stages] * stages  # of the stages in all step times, running means
        self._variance = 0.0  # of step times, as a share of them
        self._varied = 0  # steps in these
        self._lines: tuple[Line, Line] | None = None  # the fit; None: to be made
        self._current = 1
        self._costs: list[float] = []  # by number of groups: cycle over the best one, running means
        self._compared = 0  # sequences when these began
        self._decoded = self._prefill = (
            0.0  # tokens, and seconds of the slowest stage: decaying sums
        )
        self._chunks = 0  # observed
        self.stalls = Stalls(stages)

    # what was measured

    def observe(self, batch: int, seconds: tuple[float, ...]) -> None:
        """One decode step over `batch` sequences took `seconds` in each stage.

        The first step of a batch size is not counted: it compiles kernels and allocates.
        """
        self._count += 1
        mean = self._means.setdefault(batch, _Mean(list(seconds), self._count))
        if mean.seen == 1:
            mean.stages = list(seconds)
        elif 1 < mean.seen < SETTLED:  # sequences that join make the first steps of a batch longer
            mean.stages = list(map(min, mean.stages, seconds))
        elif mean.seen:
            weight = max(DECAY, 1 / mean.seen)
            for stage, (old, new) in enumerate(zip(mean.stages, seconds, strict=True)):
                mean.stages[stage] += weight * (min(new, OUTLIER * old) - old)
        if mean.seen:
            self._compare_stages(seconds)
        mean.seen += 1
        mean.last = self._count
        self._lines = None
        self._forget()
        weight = 0.5 ** (batch / MIX_MEMORY)
        self._decoded = weight * self._decoded + batch
        self._prefill *= weight

    def _compare_stages(self, seconds: tuple[float, ...]) -> None:
        """Learn how the stages share the work, and how much that varies from step to step."""
        total = sum(seconds)
        if total <= 0:
            return
        self._varied += 1
        weight = max(SHARE_DECAY, 1 / self._varied)
        deviations = 0.0
        for stage, value in enumerate(seconds):
            share = self._shares[stage]
            change = value / total - share
            self._shares[stage] += weight * change
            deviations += min(change / share, 1.0) ** 2 if share else 0.0
        found = deviations / max(1, len(seconds) - 1)
        self._variance += SHARE_DECAY * (found - self._variance)

    def _forget(self) -> None:
        """Drop stale sizes, but keep the two latest for longer: without a line the choice starts anew."""
        stale = [b for b, m in self._means.items() if self._count - m.last >= FORGET]
        if stale:
            longest = FORGET_ALL * self.stages
            latest = sorted(self._means, key=lambda b: self._means[b].last)[-2:]
            for batch in stale:
                if batch not in latest or self._count - self._means[batch].last >= longest:
                    del self._means[batch]

    @property
    def noise(self) -> float:
        """Standard deviation of step times, as a share of them; within the limits that are reckoned with."""
        return min(max(math.sqrt(self._variance), LEAST_NOISE), MOST_NOISE)

    def fit(self) -> Line | None:
        """(fixed seconds, seconds per sequence) of the slowest stage; None until two batch sizes are known."""
        lines = self._fit()
        return None if lines is None else lines[1]

    def _fit(self) -> tuple[Line, Line] | None:
        """All stages together, and the slowest one: its share of them, as far as its own shape is unknown.

        The total varies less than its parts, and sizes close together tell no slope of a single stage.
        """
        if self._lines is None:
            known = {batch: mean.stages for batch, mean in self._means.items() if mean.seen > 1}
            if len(known) < 2:
                return None
            variance = self.noise**2
            totals = {batch: sum(stages) for batch, stages in known.items()}
            fixed, slope = total = _possible(
                _fit(totals, FLATNESS * variance / self.stages), totals
            )
            share = max(self._shares)
            slowest = self._shares.index(share)
            own = {batch: stages[slowest] for batch, stages in known.items()}
            differences = {batch: own[batch] - share * totals[batch] for batch in known}
            more_fixed, more_slope = _fit(differences, LIKENESS * variance)
            line = share * fixed + more_fixed, share * slope + more_slope
            self._lines = total, _possible(line, own)
        return self._lines

    # the number of groups

    def cycles(self, sequences: int, most: int) -> tuple[float, ...]:
        """Seconds between two tokens of a sequence with 1 to `most` equal groups; empty before any fit."""
        lines = self._fit()
        if lines is None:
            return ()
        _, (fixed, slope) = lines
        work = min(self.stages, sequences) * fixed + sequences * slope
        prefill = min(sequences * self._prefill / self._decoded, MOST_PREFILL * work)
        return tuple(self._cycle(sequences, groups, prefill) for groups in range(1, most + 1))

    def _cycle(self, sequences: int, groups: int, prefill: float) -> float:
        """With `prefill` seconds of other work in each cycle; 0 before any fit."""
        lines = self._fit()
        if lines is None:
            return 0.0
        total, slowest = lines
        trip = total[0] + total[1] * -(-sequences // groups) + prefill / groups
        work = groups * slowest[0] + sequences * slowest[1] + prefill
        return _smooth_max(trip, work, 1 / self.noise)

    def groups(self, sequences: int) -> int:
        """The number of micro-batches, at most two for each stage: more steps are never in flight."""
        self.choice = self._choose(sequences)
        self._current = self.choice.groups
        return self._current

    def settle(self, sequences: int, groups: int, reason: str) -> int:
        """Note a number of micro-batches that was not for Pacing to choose; returns it."""
        self.choice = replace(self.choice, sequences=sequences, groups=groups, reason=reason)
        return groups

    def _choose(self, sequences: int) -> Choice:
        if self.stages == 1:
            return Choice(sequences, 1, "one stage works on one micro-batch at a time")
        line = self.fit()
        if line is None:
            return self._choose_blindly(sequences)
        cycles = self._cycles(sequences)
        groups, reason = self._best(sequences, cycles)
        return Choice(sequences, groups, reason, line[0], line[1], self.noise, cycles)

    def _choose_blindly(self, sequences: int) -> Choice:
        """Full stages cost little where T is flat and help where it is not; then another size shows which."""
        most = max(1, min(self.stages, sequences))
        if most > 1 and any(mean.seen >= PROBE for mean in self._means.values()):
            other = min(sequences, most + -(-most // 2))
            if -(-sequences // other) == -(-sequences // most):
                other = -(-most // 2)
            return Choice(sequences, other, "another batch size is tried, to measure its time")
        return Choice(sequences, most, "one for each stage, until two batch sizes are measured")

    def _best(self, sequences: int, cycles: tuple[float, ...]) -> tuple[int, str]:
        costs = self._compare(sequences, cycles)
        fewest = _fewest(costs)
        current = min(self._current, len(costs))
        here, there = costs[current - 1], costs[fewest - 1]
        if sequences <= 1:
            return 1, "there is nothing to divide"
        if fewest > current and there >= (1 - GAIN) * here:
            gain = 100 * (1 - there / here)
            return current, f"{fewest} would save {gain:.1f} %, too little to move sequences for"
        if fewest == 1:
            return 1, f"dividing {sequences} sequences would save less than {100 * LOSS:.0f} %"
        one, several = 1e3 * cycles[0], 1e3 * cycles[fewest - 1]
        return fewest, f"a token every {several:.1f} ms, against {one:.1f} ms undivided"

    def _compare(self, sequences: int, cycles: tuple[float, ...]) -> list[float]:
        """Each number's cycle as a multiple of the best one, over the last while."""
        best = min(cycles)
        fresh = [cycle / best if best > 0 else 1.0 for cycle in cycles]
        if abs(sequences - self._compared) > JUMP * self._compared:
            self._costs, self._compared = [], sequences
        old = self._costs[: len(fresh)]
        means = [a + MEMORY * (b - a) for a, b in zip(old, fresh, strict=False)]
        self._costs = means + fresh[len(old) :]
        return self._costs

    # the size of a prefill chunk

    def observe_prefill(
        self, tokens: int, seconds: tuple[float, ...], attended: float = 0.0
    ) -> None:
        """A chunk of `tokens` took `seconds` in each stage.  The first of all is not counted: it compiles.

        `attended`: pairs of tokens of which one attends to the other, as pipeline.chunks counts them.
        """
        self._chunks += 1
        if self._chunks == 1:
            return
        self._prefill += max(seconds)
        self.chunks.observe(tokens, max(seconds), attended)
        self.stalls.observe(tokens, seconds, attended, self.chunks.cost.attention)

    @property
    def decoding(self) -> float:
        """Seconds between two tokens of a sequence without prefill beside it; 0 before any is measured."""
        if self._fit() is None:
            flat = self._only_size()
            return 0.0 if flat is None else max(sum(flat), self.choice.groups * max(flat))
        return self._cycle(self.choice.sequences, self.choice.groups, prefill=0.0)

    def stall_within(self, bound: float) -> float:
        """Seconds by which prefill may delay a stream that is to have a token in `bound` seconds."""
        decoding = self.decoding
        margin = MARGIN if self.stages > 1 else MARGIN_OF_ONE
        return max(0.0, min(margin * bound - decoding, bound - OTHERS * decoding))

    @property
    def fixed_step(self) -> float:
        """Seconds of a decode step in the slowest stage that are the same for any number of sequences.

        Before any decode step, as in a chunk: both go through all weights once.  0 before that.
        """
        line = self.fit()
        if line is not None:
            return line[0]
        flat = self._only_size()
        if flat is not None:
            return max(flat)
        return self.chunks.cost.fixed if self.chunks.measured else 0.0

    def expected_groups(self, sequences: int) -> int:
        """The number of micro-batches that would be best for so many; what `groups` chose is left as it is."""
        cycles = self._cycles(sequences)
        if self.stages == 1 or not cycles:
            return max(1, min(self.stages, sequences))
        return _fewest(cycles)

    def _cycles(self, sequences: int) -> tuple[float, ...]:
        """For all numbers of micro-batches that can be chosen."""
        return self.cycles(sequences, max(1, min(2 * self.stages, sequences)))

    def _only_size(self) -> list[float] | None:
        """Seconds of each stage for the batch size that is known while no other one is."""
        return next((mean.stages for mean in self._means.values() if mean.seen > 1), None)

    def chunk(self, bound: float, most: int, start: int = 0) -> int:
        """Prompt tokens of the next chunk, up to `most`, that leave running streams a token in `bound` seconds.

        `start`: tokens before it.  What a token costs is measured with chunks of about this size, so that what
        each chunk costs beside its tokens is in it: an estimate that is off corrects itself with the next one.
        """
        attention = self.chunks.cost.attention
        rate = self.stalls.per_token(attention)
        if not rate:
            return min(most, SMALLEST_CHUNK)
        work = self.stall_within(bound) / rate
        tokens = Cost(0.0, 1.0, attention).tokens(work, start)
        if tokens >= most:
            return most
        whole = int(tokens) // ALIGNED * ALIGNED if tokens > 4 * ALIGNED else int(tokens)
        return min(most, max(SMALLEST_CHUNK, whole))


def _fewest(costs: Sequence[float]) -> int:
    """The least number of groups that costs hardly more than the best one, of those for 1, 2, ... groups."""
    best = min(costs)
    return next(groups for groups, cost in enumerate(costs, 1) if cost <= (1 + LOSS) * best)


def _smooth_max(a: float, b: float, power: float) -> float:
    """The p-norm of two positive values: about the larger one, and more where they are close."""
    larger, smaller = max(a, b), min(a, b)
    if smaller <= 0:
        return larger
    return float(larger * (1 + (smaller / larger) ** power) ** (1 / power))


def _fit(points: dict[int, float], ridge: float) -> Line:
    """A straight line through values by batch size, at least two of them, by least squares.

    `ridge`, for the square of the mean size, pulls towards a flat line.
    """
    n = len(points)
    mean_b = sum(points) / n
    mean_t = sum(points.values()) / n
    spread = sum((b - mean_b) ** 2 for b in points)
    slope = sum((b - mean_b) * (t - mean_t) for b, t in points.items())
    slope /= spread + ridge * mean_b**2
    return mean_t - slope * mean_b, slope


def _possible(line: Line, points: dict[int, float]) -> Line:
    """The line, or the nearest one that times can have: not falling, and not from below zero."""
    fixed, slope = line
    mean_b, mean_t = sum(points) / len(points), sum(points.values()) / len(points)
    if slope < 0:
        return mean_t, 0.0
    return line if fixed >= 0 else (0.0, mean_t / mean_b)
