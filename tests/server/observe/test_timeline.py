"""A timeline that is ordered through heartbeats, recorded by several ranks, and put together."""

from __future__ import annotations

import asyncio
import time
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline.timeline import Span, Timeline
from server.observe.timeline import SPANS_PER_MESSAGE, TimelineRecorder, chrome_trace
from server.rpc import timelines
from server.rpc.client import CoordinatorClient
from server.rpc.clock import ClockOffset
from server.rpc.errors import Overloaded, Refused
from server.rpc.records import HealthPolicy, RankReport, RankState, TimelineReport
from server.rpc.timelines import TimelineDesk
from tests.server.rpc.samples import registration
from tests.server.rpc.test_coordinator import cluster

pytestmark = pytest.mark.anyio

DEADLINE = 60.0  # seconds


class Stage:
    """A worker that does one thing after another, in a task of this loop."""

    def __init__(self) -> None:
        self.timeline: Timeline | None = None
        self.step = 0

    async def work(self) -> None:
        while True:
            began = time.monotonic()
            await asyncio.sleep(0.005)
            if self.timeline is not None:
                self.timeline.add("compute", began, self.step)
            self.step += 1


def beating(client: CoordinatorClient, rank: int, stage: Any) -> Any:
    record = TimelineRecorder(
        registration(rank), lambda: stage, client.send_timeline, lambda: client.clock.seconds
    )
    return client.run_heartbeats(
        registration(rank),
        HealthPolicy(0.05, 100),
        lambda: RankReport(RankState.READY),
        lambda revision, changes: None,
        record,
    )


async def test_all_ranks_record_the_same_seconds() -> None:
    async with cluster(HealthPolicy(0.05, 100)) as (coordinator, client):
        stages: list[Any] = [Stage(), Stage(), None]  # the last one still loads
        for rank in range(3):
            await client.register(registration(rank), DEADLINE)
        tasks = [asyncio.create_task(stage.work()) for stage in stages if stage]
        tasks += [asyncio.create_task(beating(client, r, stages[r])) for r in range(3)]
        try:
            recording = await asyncio.wait_for(coordinator.record_timeline(0.3), DEADLINE)
        finally:
            for task in tasks:
                task.cancel()
        trace: Any = chrome_trace(recording, 7)
    assert (trace["missing_ranks"], trace["epoch"]) == ([], 7)
    assert [stage.timeline for stage in stages[:2]] == [None, None]
    spans = [event for event in trace["traceEvents"] if event["ph"] == "X"]
    for rank in range(2):
        mine = [span for span in spans if span["pid"] == rank]
        assert len(mine) > 2
        # One clock here: what is at the edges of the window may reach beyond them by its own length.
        begin, end = 1e6 * recording.order.start_s, 1e6 * (recording.order.start_s + 0.3)
        assert all(s["ts"] < end + 5e4 and s["ts"] + s["dur"] > begin - 5e4 for s in mine)
    names = [e["args"]["name"] for e in trace["traceEvents"] if e["name"] == "process_name"]
    assert names == ["0 mini1", "1 mini2", "2 master"]


async def test_many_spans_come_in_parts() -> None:
    timeline = Timeline()
    now = time.monotonic()
    count = 2 * SPANS_PER_MESSAGE + 1
    for step in range(count):
        timeline._spans.append(Span("send", now, now + 1000.0, step))
    desk = TimelineDesk(7)
    recording = asyncio.create_task(desk.record(0.2, {1}, 0.0))
    await asyncio.sleep(0)
    parts: list[TimelineReport] = []

    async def send(report: TimelineReport) -> None:
        parts.append(report)
        desk.receive(report)

    order = desk.order
    assert order is not None
    worker: Any = SimpleNamespace(timeline=timeline)
    TimelineRecorder(registration(1), lambda: worker, send, lambda: 0.0)(order)
    done = await asyncio.wait_for(recording, DEADLINE)
    assert [part.more for part in parts] == [True, True, False]
    assert len(done.spans[1]) == count
    assert worker.timeline is timeline  # one that is kept for its folder stays


async def test_one_at_a_time_and_nothing_unasked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timelines, "PATIENCE_S", 0.1)
    desk = TimelineDesk(7)
    with pytest.raises(Refused, match="timeline 1 is over"):
        desk.receive(TimelineReport(7, 0, "mini1", 1, ()))
    first = asyncio.create_task(desk.record(0.01, {0, 1}, 0.01))
    await asyncio.sleep(0)
    with pytest.raises(Overloaded):
        await desk.record(0.01, {0, 1}, 0.01)
    with pytest.raises(Refused, match="epoch 6"):
        desk.receive(TimelineReport(6, 0, "mini1", 1, ()))
    with pytest.raises(Refused, match="rank 2 has no part"):
        desk.receive(TimelineReport(7, 2, "master", 1, ()))
    desk.receive(TimelineReport(7, 0, "mini1", 1, ()))
    recording = await asyncio.wait_for(first, DEADLINE)
    assert (recording.missing, desk.order) == ({1}, None)
    assert (await desk.record(5.0, set(), 5.0)).missing == set()  # nobody to wait for


async def test_the_fastest_answer_tells_the_clock() -> None:
    clock = ClockOffset()
    assert clock.seconds == 0.0
    clock.observe(100.0, 160.0, 104.0)
    clock.observe(200.0, 250.5, 201.0)
    clock.observe(300.0, 370.0, 308.0)
    assert clock.seconds == 50.0
