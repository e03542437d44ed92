"""Step times of the simulator's stages: given, or measured on real ranks, as a JSON file.

The file has `stages`, in the order of the ranks, each with `decode` and `prefill` as lists of [size, seconds]
and `overhead`; and `latency`, `bandwidth` (null: no limit) and `token_bytes` of the hops.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import fmean

import msgspec

from benchlib.simulation import Curve, Network, StageTimes

Points = tuple[tuple[float, float], ...]


class MeasuredStage(msgspec.Struct, frozen=True):
    """Sizes and seconds; `overhead`: seconds of Python for each step."""

    decode: Points
    prefill: Points
    overhead: float = 0.0


class Measurement(msgspec.Struct, frozen=True):
    """See the module's text."""

    stages: tuple[MeasuredStage, ...]
    latency: float = 0.0
    bandwidth: float | None = None
    token_bytes: int = 0

    @property
    def network(self) -> Network:
        return Network(self.latency, self.bandwidth or float("inf"), self.token_bytes)

    def ring(self, stages: int) -> list[StageTimes]:
        """Times of so many stages: as measured, or like the one that was.  Raises ValueError."""
        if len(self.stages) not in (1, stages):
            raise ValueError(f"{len(self.stages)} stages were measured, {stages} are wanted")
        times = [
            StageTimes(_curve(stage.decode), _curve(stage.prefill), stage.overhead)
            for stage in self.stages
        ]
        return times * (stages // len(times))


@dataclass(frozen=True)
class Preset:
    """One stage's seconds: of every decode step, for each sequence, of every chunk, for each of its tokens.

    `attention`: for each pair of tokens of which one attends to the other.
    """

    fixed: float
    each: float
    prefill_fixed: float
    prefill_each: float
    attention: float = 0.0

    def times(self, overhead: float = 0.0) -> StageTimes:
        decode = Curve.line(self.fixed, self.each)
        prefill = Curve.line(self.prefill_fixed, self.prefill_each)
        return StageTimes(decode, prefill, overhead, self.attention)


PRESETS = {
    "compute-bound": Preset(0.0, 2e-3, 0.0, 2e-4),
    "memory-bound": Preset(10e-3, 2e-5, 10e-3, 5e-5),
    "mixed": Preset(5e-3, 5e-4, 5e-3, 2e-4),
}


def read(path: Path) -> Measurement:
    """Raises OSError, or ValueError naming the file."""
    try:
        found = msgspec.json.decode(path.read_bytes(), type=Measurement)
        if not found.stages:
            raise ValueError("it has no stages")
        for stage in found.stages:
            _curve(stage.decode)
            _curve(stage.prefill)
    except (msgspec.MsgspecError, ValueError) as error:
        raise ValueError(f"{path} holds no step times: {error}") from None
    return found


def means(observed: Iterable[tuple[int, float]], fewest: int = 3) -> Points:
    """The mean time of each size seen at least so often; of every size if that leaves less than two.

    Not the median: what a machine loses by pauses counts too.
    """
    by_size: dict[int, list[float]] = {}
    for size, seconds in observed:
        by_size.setdefault(size, []).append(seconds)
    often = {size: times for size, times in by_size.items() if len(times) >= fewest}
    chosen = often if len(often) > 1 else by_size
    return tuple(sorted((float(size), fmean(times)) for size, times in chosen.items()))


def _curve(points: Points) -> Curve:
    """Flat where only one size was measured.  Raises ValueError for none, or sizes out of order."""
    sizes = [size for size, _ in points]
    if not points or any(b <= a for a, b in pairwise(sizes)):
        raise ValueError("sizes have to rise, and there has to be one")
    if len(points) == 1:
        return Curve.line(points[0][1], 0.0)
    return Curve(points)
