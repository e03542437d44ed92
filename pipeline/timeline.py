"""When a rank did what, for a trace viewer: the Trace Event Format of Chrome, one file for each rank."""

from __future__ import annotations

import json
import time
from collections import deque
from pathlib import Path
from typing import Literal, NamedTuple, TypeAlias, get_args

Activity: TypeAlias = Literal["choose", "build", "wait", "compute", "send", "absorb"]
"""choose: the scheduler; build: the graph of a step, and its announcement; wait: for the previous stage, or for
the next one to take what was sent before; compute: until the output is there; send: the frame that says so,
or the result; absorb: a result, on rank 0."""

ACTIVITIES: tuple[Activity, ...] = get_args(Activity)

CAPACITY = 1 << 18  # spans; the oldest go first


class Span(NamedTuple):
    """`start`, `end`: seconds of time.monotonic()."""

    activity: Activity
    start: float
    end: float
    step: int


class Timeline:
    """The latest spans of one rank.  Its engine thread adds them; any thread may read."""

    def __init__(self) -> None:
        self._spans: deque[Span] = deque(maxlen=CAPACITY)
        # Ranks of one machine share the clock; those of several are as far apart as their clocks are.
        self._origin = time.time() - time.monotonic()

    def add(self, activity: Activity, start: float, step: int) -> float:
        """Something that began at `start` has ended now; returns now."""
        now = time.monotonic()
        self._spans.append(Span(activity, start, now, step))
        return now

    def between(self, start: float, end: float) -> list[Span]:
        """Spans of which a part lies between two times of time.monotonic(), in the order of their ends."""
        return [span for span in self._spans.copy() if span.end > start and span.start < end]

    def write(self, folder: Path, rank: int, node: str, epoch: int) -> Path:
        """Write all spans to a file in `folder`, which is made where needed.  Raises OSError."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"rank{rank}.json"
        path.write_text(json.dumps(self._document(rank, node, epoch)), encoding="utf-8")
        return path

    def _document(self, rank: int, node: str, epoch: int) -> dict[str, object]:
        name = {"name": "process_name", "ph": "M", "pid": rank, "args": {"name": f"{rank} {node}"}}
        events = [name, *(self._event(span, rank) for span in self._spans)]
        return {"traceEvents": events, "epoch": epoch}

    def _event(self, span: Span, rank: int) -> dict[str, object]:
        return {
            "name": span.activity,
            "ph": "X",
            "ts": round(1e6 * (self._origin + span.start), 1),  # microseconds
            "dur": round(1e6 * (span.end - span.start), 1),
            "pid": rank,
            "tid": 0,
            "args": {"step": span.step},
        }
