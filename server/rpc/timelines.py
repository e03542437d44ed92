"""A timeline of all ranks, recorded when somebody asks: the wish travels with the answers to heartbeats.

Every rank records from when it hears of it, which is before the window begins, and sends what it did in the
window once that is over.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from server.rpc.errors import Overloaded, Refused
from server.rpc.records import TimelineOrder, TimelineReport, TimelineSpan

MARGIN_S = 0.25  # after the interval of heartbeats, in which every rank is told
PATIENCE_S = 10.0  # for the spans to arrive after the end, besides an interval
MAX_SPANS = 1 << 20  # of one rank; what comes after it is dropped


@dataclass
class Recording:
    """A timeline that is being made."""

    order: TimelineOrder
    missing: set[int]
    nodes: dict[int, str] = field(default_factory=dict)
    spans: dict[int, list[TimelineSpan]] = field(default_factory=dict)
    done: asyncio.Event = field(default_factory=asyncio.Event)

    def take(self, report: TimelineReport) -> None:
        self.nodes[report.rank] = report.node
        mine = self.spans.setdefault(report.rank, [])
        mine.extend(report.spans[: MAX_SPANS - len(mine)])
        if not report.more:
            self.missing.discard(report.rank)
            if not self.missing:
                self.done.set()


class TimelineDesk:
    """Gives the orders and takes the reports.  One timeline at a time; in the coordinator's loop."""

    def __init__(self, epoch: int, clock: Callable[[], float] = time.time) -> None:
        """`clock`: Unix time."""
        self._epoch, self._clock = epoch, clock
        self._last = 0
        self._recording: Recording | None = None

    @property
    def order(self) -> TimelineOrder | None:
        """What ranks are to be told at this moment."""
        return None if self._recording is None else self._recording.order

    async def record(self, seconds: float, ranks: set[int], interval_s: float) -> Recording:
        """What `ranks` did in the next `seconds`, once all have heard of it in heartbeats every `interval_s`.

        A rank that does not answer is in `missing` of what is returned.  Raises Overloaded while another one
        is being recorded.
        """
        if self._recording is not None:
            raise Overloaded("another timeline is being recorded")
        self._last += 1
        order = TimelineOrder(self._last, self._clock() + interval_s + MARGIN_S, seconds)
        self._recording = recording = Recording(order, set(ranks))
        if not ranks:
            recording.done.set()
        try:
            patience = interval_s + MARGIN_S + seconds + interval_s + PATIENCE_S
            await asyncio.wait_for(recording.done.wait(), patience)
        except asyncio.TimeoutError:
            return recording
        finally:
            self._recording = None
        return recording

    def receive(self, report: TimelineReport) -> None:
        """Take what a rank recorded.  Raises Refused for what nobody asked for."""
        recording = self._recording
        if report.epoch != self._epoch:
            raise Refused(
                f"rank {report.rank} belongs to epoch {report.epoch}, "
                f"the coordinator runs epoch {self._epoch}"
            )
        if recording is None or recording.order.id != report.order:
            raise Refused(f"timeline {report.order} is over")
        if report.rank not in recording.missing:
            raise Refused(f"rank {report.rank} has no part in timeline {report.order}, or sent it")
        recording.take(report)
