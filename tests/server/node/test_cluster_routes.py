from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.testclient import TestClient

from server.node.cluster_routes import ClusterView, EngineStats, cluster_routes
from server.rpc.records import Counters, HealthPolicy, Memory, RankState
from server.rpc.registry import ClusterRegistry
from tests.server.rpc.samples import heartbeat, registration

IDLE = EngineStats(last_step_age_s=3600.0)
MEMORY = Memory(active=500, peak=700, cache=20, limit=1000)


def three_ranks(last: RankState = RankState.READY) -> ClusterRegistry:
    registry = ClusterRegistry(7, 3, HealthPolicy())
    for rank in range(3):
        registry.register(registration(rank), now=0.0)
        state = last if rank == 2 else RankState.READY
        beat = heartbeat(rank, state, parameter_bytes=100 + rank, memory=MEMORY, sequences=rank)
        registry.heartbeat(beat, now=1.0)
    return registry


def get(path: str, registry: ClusterRegistry, now: float, stats: EngineStats = IDLE) -> Any:
    view = ClusterView(
        name="mlx-cluster",
        model="demo",
        version="0.1.0",
        hang_after_s=30.0,
        snapshot=lambda: registry.snapshot(now),
        engine_stats=lambda: stats,
        scheduling=lambda: {"running": stats.running},
        uptime_s=lambda: 12.5,
    )
    return TestClient(Starlette(routes=cluster_routes(view))).get(path)


def test_health_has_the_documented_body() -> None:
    response = get("/health", three_ranks(), now=3.0, stats=EngineStats(1, 2, 0.25, 4.0))
    assert response.status_code == 200
    body = response.json()
    ranks = body.pop("ranks")
    assert body == {
        "status": "ok",
        "reason": "",
        "model": "demo",
        "version": "0.1.0",
        "uptime_s": 12.5,
        "running": 1,
        "waiting": 2,
        "last_step_age_s": 0.25,
        "alerts": [],
        "wishes": {"revision": 0, "leader": None, "draining": None},
    }
    assert ranks[1] == {
        "rank": 1,
        "node": "mini2",
        "layers": [10, 18],
        "state": "ready",
        "heartbeat_age_s": 2.0,
        "memory_bytes": 500,
    }
    assert [rank["layers"] for rank in ranks] == [[0, 9], [10, 18], [19, 27]]


@pytest.mark.parametrize(
    ("last", "now", "stats", "health", "ready", "reason"),
    [
        (RankState.READY, 1.0, IDLE, 200, 200, ""),
        (RankState.LOADING, 1.0, IDLE, 200, 503, "rank 2 (master) is loading"),
        (RankState.DRAINING, 1.0, IDLE, 200, 503, "rank 2 (master) is draining"),
        (RankState.FAILED, 1.0, IDLE, 503, 503, "rank 2 (master) is failed"),
        (
            RankState.READY,
            17.0,
            IDLE,
            503,
            503,
            "rank 0 (mini1) is dead: no heartbeat for more than 15 s",
        ),
        (
            RankState.READY,
            1.0,
            EngineStats(running=1, waiting=2, last_step_age_s=31.0, busy_s=40.0),
            503,
            503,
            "no step for 31 s with 1 requests running and 2 waiting",
        ),
        # Long prefills and requests that arrive after a quiet hour are no hang.
        (RankState.READY, 1.0, EngineStats(1, 0, 29.0, 29.0), 200, 200, ""),
        (RankState.READY, 1.0, EngineStats(1, 0, 3600.0, 0.1), 200, 200, ""),
        # The very first step can hang too.
        (
            RankState.READY,
            1.0,
            EngineStats(0, 1, None, 31.0),
            503,
            503,
            "no step for 31 s with 0 requests running and 1 waiting",
        ),
    ],
)
def test_health_and_readiness(
    last: RankState, now: float, stats: EngineStats, health: int, ready: int, reason: str
) -> None:
    healthy = get("/health", three_ranks(last), now, stats)
    readiness = get("/ready", three_ranks(last), now, stats)
    assert (healthy.status_code, readiness.status_code) == (health, ready)
    assert readiness.json()["reason"] == reason
    assert readiness.json()["status"] == ("ready" if ready == 200 else "not_ready")
    assert ("retry-after" in readiness.headers) == (ready == 503)
    assert healthy.json().keys() == readiness.json().keys()


def test_a_cluster_that_is_still_gathering_is_healthy_but_not_ready() -> None:
    registry = ClusterRegistry(7, 3, HealthPolicy())
    registry.register(registration(0), now=0.0)
    health = get("/health", registry, now=1.0)
    assert (health.status_code, health.json()["status"]) == (200, "starting")
    assert health.json()["ranks"][0]["memory_bytes"] is None
    assert get("/ready", registry, 1.0).json()["reason"] == "rank 0 (mini1) is starting"


def test_cluster_shows_what_each_rank_reports() -> None:
    registry = three_ranks()
    beat = heartbeat(1, parameter_bytes=101, memory=MEMORY, counters=Counters(1, 2, 3, 4))
    registry.heartbeat(replace(beat, config_revision=5), now=2.0)
    body = get("/v1/cluster", registry, now=3.0).json()
    ranks = body.pop("ranks")
    assert body == {
        "object": "cluster",
        "name": "mlx-cluster",
        "model": "demo",
        "version": "0.1.0",
        "epoch": 7,
        "size": 3,
        "ready": True,
        "reason": "",
        "leader": {"rank": 0, "node": "mini1"},
        "config_revision": 0,
        "missing_ranks": [],
        "scheduling": {"running": 0},
    }
    assert ranks[1] == {
        "rank": 1,
        "node": "mini2",
        "host": "127.0.0.1",
        "pid": 1001,
        "ports": {"inference": 8200, "communication": 8201, "health": 8202},
        "layers": {"range": [10, 18], "count": 9},
        "fingerprint": "f00d",
        "versions": {
            "python": "3.11.7",
            "mlx": "0.32.4",
            "mlx_lm": "0.32.2",
            "project": "0.1.0",
        },
        "state": "ready",
        "reason": "",
        "heartbeat_age_s": 1.0,
        "config_revision": 5,
        "load_progress": None,
        "parameter_bytes": 101,
        "memory": {"active_bytes": 500, "peak_bytes": 700, "cache_bytes": 20, "limit_bytes": 1000},
        "sequences": 0,
        "last_step_age_s": None,
        "counters": {
            "frames_sent": 1,
            "frames_received": 2,
            "bytes_sent": 3,
            "bytes_received": 4,
        },
        "stage": None,
        "resources": None,
    }
    assert [rank["layers"]["count"] for rank in ranks] == [10, 9, 9]
    assert ranks[0]["counters"] is None


def test_cluster_claims_nothing_for_a_rank_that_has_not_reported() -> None:
    registry = ClusterRegistry(7, 3, HealthPolicy())
    registry.register(registration(1), now=0.0)
    body = get("/v1/cluster", registry, now=1.0).json()
    assert body["missing_ranks"] == [0, 2]
    assert body["leader"] == {"rank": 0, "node": None}
    assert body["ranks"][0]["memory"] is None
    assert body["ranks"][0]["parameter_bytes"] is None
