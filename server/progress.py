"""What a supervised rank says of its start: lines for the launcher, who gives up one that stands still."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

_SAID = re.compile(r"start: (?P<rank>\d+) (?P<count>\d+) (?P<percent>\d+)% (?P<what>\S.*)")


@dataclass(frozen=True)
class Step:
    """How far a rank has come.  `count` differs wherever it has come further, `percent` is of `what`."""

    count: int
    percent: int
    what: str


class Announcer:
    """Says how far this rank is, each time that it has come further."""

    def __init__(self, wanted: bool, step: Callable[[], Step]) -> None:
        """`wanted`: whether there is a launcher that listens."""
        self._wanted, self._step = wanted, step
        self._told: Step | None = None

    def tell(self) -> None:
        step = self._step()
        if self._wanted and step != self._told:
            self._told = step
            print(said(launched_rank(), step), flush=True)


def launched_rank(environ: Mapping[str, str] = os.environ) -> int:
    """By what mlx.launch or mpirun has set, before the ranks have met; alone it is 0."""
    return int(environ.get("MLX_RANK") or environ.get("OMPI_COMM_WORLD_RANK") or 0)


def said(rank: int, step: Step) -> str:
    return f"start: {rank} {step.count} {step.percent}% {' '.join(step.what.split())}"


def heard(line: str) -> tuple[int, Step] | None:
    """Rank and step; None for any other line."""
    match = _SAID.fullmatch(line.rstrip())
    if match is None:
        return None
    step = Step(int(match["count"]), int(match["percent"]), match["what"])
    return int(match["rank"]), step
