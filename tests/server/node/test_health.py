from __future__ import annotations

import pytest
from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient

from server.node.health import NodeView, health_app
from server.rpc.records import Memory, RankReport, RankState, StageTimes


def client(report: RankReport, layers: tuple[int, int] | None = (10, 18)) -> TestClient:
    view = NodeView(
        rank=1,
        node="mini2",
        size=3,
        model="demo",
        version="0.1.0",
        layers=lambda: layers,
        report=lambda: report,
        uptime_s=lambda: 3.0,
    )
    return TestClient(health_app(view), raise_server_exceptions=False)


@pytest.mark.parametrize(
    ("state", "health", "ready"),
    [
        (RankState.STARTING, 200, 503),
        (RankState.LOADING, 200, 503),
        (RankState.READY, 200, 200),
        (RankState.DRAINING, 200, 503),
        (RankState.FAILED, 503, 503),
    ],
)
def test_a_node_answers_for_itself(state: RankState, health: int, ready: int) -> None:
    node = client(RankReport(state))
    assert node.get("/health").status_code == health
    response = node.get("/ready")
    assert response.status_code == ready
    assert ("retry-after" in response.headers) == (ready == 503)


def test_the_body_is_the_rank_s_own_report() -> None:
    report = RankReport(
        RankState.LOADING,
        reason="reading weights",
        load_progress=0.5,
        memory=Memory(active=77),
        sequences=2,
        last_step_age_s=0.1,
    )
    assert client(report).get("/health").json() == {
        "status": "loading",
        "reason": "reading weights",
        "model": "demo",
        "version": "0.1.0",
        "uptime_s": 3.0,
        "rank": 1,
        "node": "mini2",
        "layers": [10, 18],
        "state": "loading",
        "load_progress": 0.5,
        "memory_bytes": 77,
        "sequences": 2,
        "last_step_age_s": 0.1,
    }
    assert client(report, layers=None).get("/health").json()["layers"] is None


def test_other_paths_and_methods_get_an_error_body() -> None:
    node = client(RankReport(RankState.READY))
    missing = node.get("/nothing")
    assert missing.status_code == 404
    assert missing.json() == {
        "error": {
            "message": "GET /nothing: Not Found.",
            "type": "invalid_request_error",
            "param": None,
            "code": None,
        }
    }
    wrong = node.post("/health")
    assert (wrong.status_code, wrong.json()["error"]["param"]) == (405, None)
    assert set(wrong.headers["allow"].split(", ")) == {"GET", "HEAD"}


def test_a_bug_becomes_an_error_body_with_the_request_id() -> None:
    def broken() -> RankReport:
        raise ZeroDivisionError

    view = NodeView(1, "mini2", 3, "demo", "0.1.0", lambda: None, broken, lambda: 0.0)
    node = TestClient(health_app(view), raise_server_exceptions=False)
    response = node.get("/health", headers={"x-request-id": "abc"})
    assert response.status_code == 500
    assert response.headers["x-request-id"] == "abc"
    assert response.json()["error"]["code"] == "internal_error"
    assert "abc" in response.json()["error"]["message"]


def test_metrics_are_of_this_node_alone() -> None:
    report = RankReport(RankState.READY, memory=Memory(active=77), stage=StageTimes(9, 1.5, 0.5))
    found = {
        sample.name: (sample.value, sample.labels)
        for family in text_string_to_metric_families(client(report).get("/metrics").text)
        for sample in family.samples
    }
    labels = {"model_name": "demo", "rank": "1", "node": "mini2"}
    assert found["mlxc_memory_bytes"] == (77, labels)
    assert found["mlxc_stage_compute_seconds_total"] == (1.5, labels)
    assert found["mlxc_hop_tensor_bytes_total"] == (0, labels | {"hop": "1>2"})
    assert found["mlxc_rank_ready"] == (1, labels)
    assert "mlxc_node_memory_used_bytes" not in found  # not looked at yet
