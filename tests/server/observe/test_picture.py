"""The picture that viewers get, and the rates in it."""

from __future__ import annotations

import json
from typing import Any

from prometheus_client import CollectorRegistry

from pipeline.request import GenerationRequest, SamplingParams
from server.api.wire import to_json
from server.node.cluster_routes import ClusterView, EngineStats
from server.observe.alerts import Alert
from server.observe.latency import Latencies
from server.observe.picture import Loads, Picture, Rate
from server.observe.requests import RequestBook
from server.rpc.records import HealthPolicy, Memory, Resources, StageTimes
from server.rpc.registry import ClusterRegistry
from tests.server.rpc.samples import heartbeat, registration

SECRET = tuple(range(9000, 9020))  # tokens of a prompt


def registry_of(**report: Any) -> ClusterRegistry:
    registry = ClusterRegistry(7, 3, HealthPolicy())
    for rank in range(3):
        registry.register(registration(rank), now=0.0)
        if rank < 2:
            registry.heartbeat(heartbeat(rank, **report), now=1.0)
    return registry


def test_it_has_all_that_a_viewer_needs_and_no_text() -> None:
    registry = registry_of(
        memory=Memory(active=5), stage=StageTimes(compute_s=1.0), resources=Resources(cores=8)
    )
    book = RequestBook(Latencies("demo", CollectorRegistry()), lambda: 2.0)
    book.open(GenerationRequest(id="x", prompt=SECRET, params=SamplingParams(), max_tokens=3))
    view = ClusterView(
        name="mlx-cluster",
        model="demo",
        version="0.1.0",
        hang_after_s=30.0,
        snapshot=lambda: registry.snapshot(2.0),
        engine_stats=lambda: EngineStats(running=1),
        scheduling=lambda: {"running": 1},
        uptime_s=lambda: 12.5,
        alerts=lambda _: [Alert("temperature", 1, "mini2", 101.0, 100.0)],
    )
    text = to_json(Picture(view, book, lambda: None, frozenset)())
    picture = json.loads(text)
    assert str(SECRET[0]) not in text.decode()
    assert (picture["status"], picture["epoch"], picture["size"]) == ("starting", 7, 3)
    assert picture["leader"] == {"rank": 0, "node": "mini1"}
    assert picture["queue"] == {"running": 1, "waiting": 0}
    assert picture["tokens_per_s"] == {"generated": 0.0, "prompt": None}
    assert picture["time_to_first_token_s"] == {"p50": None, "p95": None, "requests": 0}
    assert picture["requests"][0]["state"] == "queued"
    assert picture["alerts"][0]["message"].startswith("temperature of mini2 (rank 1) is 101")
    leader, other, silent = picture["nodes"]
    assert leader["layers"] == {"first": 0, "last": 9, "count": 10}
    assert (leader["leader"], other["leader"]) == (True, False)
    assert other["gpu_memory"]["active_bytes"] == 5
    assert other["resources"]["cores"] == 8
    assert silent["state"] == "starting"
    assert "resources" not in silent


def test_loads_are_shares_of_the_time_between_two_reports() -> None:
    loads = Loads()
    registry = registry_of(stage=StageTimes(compute_s=1.0))

    def load(now: float) -> float | None:
        return loads.of(registry.snapshot(now).ranks[1], now)

    assert load(1.0) is None
    assert load(2.0) is None  # the same report
    registry.heartbeat(heartbeat(1, stage=StageTimes(compute_s=1.5)), now=3.0)
    assert load(3.5) == 0.25
    assert load(4.0) == 0.25
    registry.heartbeat(heartbeat(1, stage=StageTimes(compute_s=9.0)), now=4.0)
    assert load(4.0) == 1.0
    assert loads.of(registry.snapshot(4.0).ranks[2], 4.0) is None
    registry.heartbeat(heartbeat(1, stage=StageTimes(compute_s=9.5)), now=60.0)
    assert load(60.0) is None  # nobody has looked for a while


def test_rates_begin_with_the_second_look() -> None:
    rate = Rate()
    assert rate.of(10, 1.0) is None
    assert rate.of(30, 3.0) == 10.0
    assert rate.of(31, 3.1) == 10.0  # too soon to tell another one
    assert rate.of(0, 4.0) == 0.0  # counted anew
    assert rate.of(90, 60.0) is None  # nobody has looked for a while
    assert rate.of(92, 61.0) == 2.0
