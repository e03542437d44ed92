"""How many micro-batches to keep in flight, from the measured step times T(B).

With S stages and G groups of B/G sequences, a sequence gets its next token once per cycle:

    cycle(G) = max(sum over stages of T(B/G),  G * slowest T(B/G))

the first term being one trip through the pipeline, the second the time the slowest stage needs to serve every
group.  Where T is flat (memory-bound) all G <= S are equal and one group has the least overhead; where T grows
with the batch (compute-bound), S groups are up to S times faster.  T is fitted as a straight line.
"""

from __future__ import annotations

from dataclasses import dataclass

DECAY = 0.1  # weight of the newest observation in the running mean of its batch size
GAIN = 0.05  # more groups must promise this much less time, so that noise does not move sequences
LOSS = 0.02  # fewer groups may cost this much more: each group adds steps, which T does not include
PRIOR = 0.02  # weight of "T is flat" in the fit: batch sizes close together say little about others
FORGET = 512  # observations after which a batch size that no longer occurs is dropped


@dataclass
class _Mean:
    seconds: float  # slowest stage
    total: float  # all stages
    last: int  # number of the observation
    seen: int = 1


class Pacing:
    """Measures T(B) and chooses the number of groups.  Pure: times are handed in, in seconds."""

    def __init__(self, stages: int) -> None:
        self.stages = stages
        self._means: dict[int, _Mean] = {}
        self._count = 0
        self._current = 1

    def observe(self, batch: int, seconds: tuple[float, ...]) -> None:
        """One decode step over `batch` sequences took `seconds` in each stage.

        The first step of a batch size is not counted: it compiles kernels and allocates.
        """
        self._count += 1
        slowest, total = max(seconds), sum(seconds)
        mean = self._means.setdefault(batch, _Mean(slowest, total, self._count, seen=0))
        weight = max(DECAY, 1 / max(mean.seen, 1))
        mean.seconds += weight * (slowest - mean.seconds)
        mean.total += weight * (total - mean.total)
        mean.seen += 1
        mean.last = self._count
        self._forget()

    def _forget(self) -> None:
        """Drop stale sizes, but keep the two latest: without a line the choice would start anew."""
        latest = sorted(self._means, key=lambda b: self._means[b].last)[-2:]
        self._means = {
            b: m for b, m in self._means.items() if b in latest or self._count - m.last < FORGET
        }

    @property
    def _known(self) -> dict[int, _Mean]:
        return {batch: mean for batch, mean in self._means.items() if mean.seen > 1}

    def fit(self) -> tuple[float, float] | None:
        """(fixed seconds, seconds per sequence) of the slowest stage; None until two batch sizes are known.

        Least squares with a ridge that pulls towards a flat line.
        """
        points = [(batch, mean.seconds) for batch, mean in self._known.items()]
        if len(points) < 2:
            return None
        n = len(points)
        mean_b = sum(b for b, _ in points) / n
        mean_t = sum(t for _, t in points) / n
        spread = sum((b - mean_b) ** 2 for b, _ in points)
        slope = sum((b - mean_b) * (t - mean_t) for b, t in points) / (
            spread + PRIOR * n * mean_b**2
        )
        slope = max(slope, 0.0)
        fixed = mean_t - slope * mean_b
        if fixed < 0:  # through the origin: purely compute-bound
            return 0.0, mean_t / mean_b
        return fixed, slope

    def cycle(self, sequences: int, groups: int) -> float | None:
        """Seconds between two tokens of one sequence with `groups` equal micro-batches; None before any fit."""
        line = self.fit()
        if line is None:
            return None
        slowest = line[0] + line[1] * -(-sequences // groups)
        shares = [m.total / m.seconds for m in self._known.values() if m.seconds > 0]
        trip = slowest * (sum(shares) / len(shares) if shares else self.stages)
        return max(trip, groups * slowest)

    def groups(self, sequences: int) -> int:
        """The number of micro-batches for `sequences`, from 1 to the number of stages."""
        most = max(1, min(self.stages, sequences))
        cycles = [c for g in range(1, most + 1) if (c := self.cycle(sequences, g)) is not None]
        if not cycles:
            # Nothing is known yet: full groups cost nothing where T is flat and help where it is not.
            self._current = most
            return most
        current = min(self._current, most)
        fewest = next(g for g, c in enumerate(cycles, 1) if c <= (1 + LOSS) * min(cycles))
        if fewest < current or cycles[fewest - 1] < (1 - GAIN) * cycles[current - 1]:
            current = fewest
        self._current = current
        return current
