"""The latest log lines of all ranks, on rank 0."""

from __future__ import annotations

import heapq
import json
from collections import deque
from collections.abc import Mapping
from typing import Any

from server.rpc.errors import InvalidMessage, Refused
from server.rpc.records import LogBatch

Line = dict[str, Any]


class LogBook:
    """In the coordinator's loop.  `most`: lines that are kept, of all ranks together."""

    def __init__(self, epoch: int, most: int) -> None:
        self._epoch = epoch
        self._lines: deque[Line] = deque(maxlen=most)
        self._dropped: dict[tuple[int, str], int] = {}

    @property
    def dropped(self) -> Mapping[tuple[int, str], int]:
        """Lines that found no room on a rank, by rank and node."""
        return self._dropped

    def take(self, batch: LogBatch) -> None:
        """Raises Refused for a rank of another launch, InvalidMessage for what is no log line."""
        if batch.epoch != self._epoch:
            raise Refused(f"rank {batch.rank} ({batch.node}) belongs to epoch {batch.epoch}")
        self._lines.extend([_parsed(line) for line in batch.lines])
        self._dropped[batch.rank, batch.node] = batch.dropped

    def latest(self, count: int) -> list[Line]:
        """In the order of their times, as far as the clocks of the nodes agree."""
        return sorted(heapq.nlargest(count, self._lines, key=_time), key=_time)


def _parsed(text: str) -> Line:
    try:
        line = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidMessage(f"lines: not JSON: {error}") from error
    if not isinstance(line, dict) or not isinstance(line.get("time"), (int, float)):
        raise InvalidMessage("lines: a line must be an object with a time")
    return line


def _time(line: Line) -> float:
    return float(line["time"])
