"""What the stages do in the next seconds: each rank's part, and all of them as one trace."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from itertools import islice

import structlog

from pipeline.timeline import ACTIVITIES, Span, Timeline
from pipeline.worker import Worker
from server.rpc.errors import CoordinatorError
from server.rpc.records import Registration, TimelineOrder, TimelineReport, TimelineSpan
from server.rpc.timelines import Recording

SPANS_PER_MESSAGE = 8192  # some 30 bytes each

log = structlog.get_logger()

Send = Callable[[TimelineReport], Awaitable[None]]


class TimelineRecorder:
    """Records on a rank what the coordinator orders.  In the asyncio loop of the rank."""

    def __init__(
        self,
        registration: Registration,
        worker: Callable[[], Worker | None],
        send: Send,
        offset_s: Callable[[], float],
    ) -> None:
        """`worker`: None until the weights are loaded; `offset_s`: of the coordinator's clock."""
        self._registration = registration
        self._worker, self._send, self._offset_s = worker, send, offset_s
        self._last = 0
        self._task: asyncio.Task[None] | None = None

    def __call__(self, order: TimelineOrder) -> None:
        """Begin to record, unless this order is known."""
        if order.id > self._last:
            self._last = order.id
            self._task = asyncio.create_task(self._record(order))

    async def _record(self, order: TimelineOrder) -> None:
        began = time.time() + self._offset_s()
        wait = order.start_s + order.seconds - began
        worker = self._worker()
        if worker is None:
            await self._report(order, [])
            return
        kept = worker.timeline
        timeline = worker.timeline = kept or Timeline()
        try:
            await asyncio.sleep(max(0.0, wait))
        finally:
            worker.timeline = kept
        to_monotonic = time.monotonic() - time.time() - self._offset_s()
        start = order.start_s + to_monotonic
        spans = timeline.between(start, start + order.seconds)
        await self._report(order, [_to_record(span, to_monotonic) for span in spans])

    async def _report(self, order: TimelineOrder, spans: list[TimelineSpan]) -> None:
        mine = self._registration
        try:
            for part, more in _parts(spans):
                await self._send(
                    TimelineReport(mine.epoch, mine.rank, mine.node, order.id, part, more)
                )
        except CoordinatorError as error:
            log.warning("the timeline could not be sent", reason=str(error))


def _parts(spans: list[TimelineSpan]) -> Iterator[tuple[tuple[TimelineSpan, ...], bool]]:
    left, source = len(spans), iter(spans)
    while True:
        part = tuple(islice(source, SPANS_PER_MESSAGE))
        left -= len(part)
        yield part, left > 0
        if left <= 0:
            return


def _to_record(span: Span, to_monotonic: float) -> TimelineSpan:
    return TimelineSpan(
        ACTIVITIES.index(span.activity), span.start - to_monotonic, span.end - span.start, span.step
    )


def chrome_trace(recording: Recording, epoch: int) -> dict[str, object]:
    """All ranks in the Trace Event Format of Chrome; times in microseconds."""
    events: list[dict[str, object]] = []
    for rank, node in sorted(recording.nodes.items()):
        events.append(
            {"name": "process_name", "ph": "M", "pid": rank, "args": {"name": f"{rank} {node}"}}
        )
        events.append(
            {"name": "process_sort_index", "ph": "M", "pid": rank, "args": {"sort_index": rank}}
        )
        events += [_event(rank, span) for span in recording.spans[rank]]
    order = recording.order
    return {
        "traceEvents": events,
        "displayTimeUnit": "ms",
        "epoch": epoch,
        "start_s": order.start_s,
        "seconds": order.seconds,
        "missing_ranks": sorted(recording.missing),
    }


def _event(rank: int, span: TimelineSpan) -> dict[str, object]:
    return {
        "name": ACTIVITIES[span.activity],
        "ph": "X",
        "ts": round(1e6 * span.start_s, 1),
        "dur": round(1e6 * span.seconds, 1),
        "pid": rank,
        "tid": 0,
        "args": {"step": span.step},
    }
