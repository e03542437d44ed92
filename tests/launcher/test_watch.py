from __future__ import annotations

from typing import Any

import pytest

from launcher.watch import Fault, Watch, WishView, read_report

ORDER = ("mini1", "mini2", "master")


def health(status: str = "ok", reason: str = "", running: int = 0, **states: str) -> dict[str, Any]:
    ranks = [
        {
            "rank": rank,
            "node": node,
            "layers": [10 * rank, 10 * rank + 9],
            "state": states.get(node, "ready"),
            "heartbeat_age_s": 0.5,
            "memory_bytes": 1000,
        }
        for rank, node in enumerate(ORDER)
    ]
    return {"status": status, "reason": reason, "running": running, "waiting": 0, "ranks": ranks}


def watch() -> Watch:
    return Watch(ORDER, patience=3.0)


def test_half_of_the_patience_is_enough_for_a_suspicion() -> None:
    """Heartbeats grow older between two answers, too."""
    seen = watch()
    assert not seen.is_suspicious(100.0)
    seen.answered(read_report(200, health()), 1.0)  # with heartbeats 0.5 s ago
    assert not seen.is_suspicious(1.9)
    assert seen.is_suspicious(2.1)
    late = health()
    late["ranks"][1]["heartbeat_age_s"] = 1.6
    seen.answered(read_report(200, late), 3.0)
    assert seen.is_suspicious(3.0)
    seen.answered(read_report(200, health()), 3.5)
    assert not seen.is_suspicious(3.5)
    assert seen.fault is None


def test_a_cluster_is_ready_when_rank_0_says_so() -> None:
    seen = watch()
    seen.answered(read_report(200, health("starting", "rank 1 is loading")), 1.0)
    assert seen.ready_at is None
    seen.answered(read_report(200, health()), 2.0)
    assert seen.ready_at == 2.0
    seen.answered(read_report(200, health("degraded", "a disk is full")), 3.0)
    assert seen.ready_at == 2.0
    assert seen.fault is None


def test_a_dead_rank_is_the_fault_of_its_node() -> None:
    seen = watch()
    seen.answered(read_report(503, health("failing", "rank 1 (mini2) is dead", mini2="dead")), 1.0)
    assert seen.fault == Fault("rank 1 (mini2) is dead", "mini2")


def test_a_hung_step_is_nobodys_fault() -> None:
    seen = watch()
    seen.answered(read_report(503, health("failing", "no step for 120 s")), 1.0)
    assert seen.fault == Fault("no step for 120 s")


def test_rank_0_may_be_silent_until_its_ports_are_open() -> None:
    seen = watch()
    seen.silent(1000.0)
    assert seen.fault is None


def test_a_silent_rank_0_is_dead_after_its_patience() -> None:
    seen = watch()
    seen.answered(read_report(200, health()), 10.0)
    seen.silent(13.0)
    assert seen.fault is None
    seen.silent(13.5)
    assert seen.fault == Fault("rank 0 (mini1) has not answered for 3.5 s", "mini1")


def test_a_slow_answer_is_no_silence() -> None:
    seen = watch()
    seen.answered(read_report(200, health()), 10.0)
    seen.silent(12.0)
    seen.answered(read_report(200, health()), 12.5)
    seen.silent(14.0)
    assert seen.fault is None


def test_idle_is_since_the_last_request() -> None:
    seen = watch()
    for now, running, since in ((1.0, 0, 1.0), (2.0, 0, 1.0), (3.0, 2, None), (4.0, 0, 4.0)):
        seen.answered(read_report(200, health(running=running)), now)
        assert seen.idle_since == since


@pytest.mark.parametrize(
    "body",
    [{}, {"status": "ok"}, [], None, health() | {"ranks": [{}]}, health() | {"running": None}],
)
def test_what_is_no_health_document_is_refused(body: Any) -> None:
    with pytest.raises((KeyError, TypeError, ValueError)):
        read_report(200, body)


@pytest.mark.parametrize(
    ("told", "view"),
    [
        ({}, WishView()),
        ({"wishes": {"revision": 0, "leader": None, "draining": None}}, WishView()),
        ({"wishes": {"revision": 2, "leader": "", "draining": True}}, WishView(2, "", True)),
    ],
)
def test_what_the_coordinator_was_asked_is_in_the_report(
    told: dict[str, Any], view: WishView
) -> None:
    assert read_report(200, health() | told).wishes == view
