"""What a running cluster shows of itself: the event feed, timelines, metrics, and an end of a request."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from typing import Any

import httpx
from prometheus_client.parser import text_string_to_metric_families

from server.rpc.client import CoordinatorClient
from tests.cluster.harness import ANSWER_DEADLINE, HOST, Cluster, wait_until


def pictures(cluster: Cluster) -> Iterator[dict[str, Any]]:
    """Events as they come."""
    with cluster.http.stream("GET", "/v1/cluster/events") as events:
        for line in events.iter_lines():
            if line.startswith("data: "):
                yield json.loads(line.removeprefix("data: "))


def first(cluster: Cluster, wanted: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    """The first picture that is as wanted."""
    for number, picture in enumerate(pictures(cluster)):
        if wanted(picture):
            return picture
        assert number < ANSWER_DEADLINE, picture
    raise AssertionError("the feed has ended")


class Stream:
    """A long completion in a thread of its own."""

    def __init__(self, cluster: Cluster, request_id: str) -> None:
        self.cluster, self.id = cluster, request_id
        self.answer: httpx.Response | None = None
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        self.answer = httpx.post(
            f"{self.cluster.url}/v1/completions",
            json=self.cluster.body(list(range(100, 130)), 2000),
            headers={"x-request-id": self.id},
            timeout=ANSWER_DEADLINE,
        )

    def end(self) -> httpx.Response:
        answer = self.cluster.http.delete(f"/v1/requests/{self.id}")
        assert answer.status_code == 200, answer.text
        self._thread.join(ANSWER_DEADLINE)
        assert self.answer is not None
        return self.answer


def test_a_request_is_seen_traced_measured_and_ended(three: Cluster) -> None:
    stream = Stream(three, "to-be-ended")
    picture = first(three, lambda p: any(r["output_tokens"] > 5 for r in p["requests"]))
    [request] = picture["requests"]
    assert (request["id"], request["state"]) == ("to-be-ended", "decode")
    assert (request["prompt_tokens"], request["max_tokens"]) == (30, 2000)
    assert picture["queue"]["running"] == 1
    # Two pictures may be so close that no token came in between.
    seen = first(
        three,
        lambda p: (
            p["tokens_per_s"]["generated"] and all(n["load"] and n["resources"] for n in p["nodes"])
        ),
    )
    assert [node["leader"] for node in seen["nodes"]] == [True, False, False]
    assert all(node["resources"]["memory_total"] > 0 for node in seen["nodes"])

    trace = three.http.get("/v1/cluster/timeline?seconds=1").json()
    assert trace["missing_ranks"] == []
    spans = [event for event in trace["traceEvents"] if event["ph"] == "X"]
    for rank in range(3):
        mine = [span for span in spans if span["pid"] == rank]
        assert {"build", "compute"} <= {span["name"] for span in mine}
        begin, end = 1e6 * trace["start_s"], 1e6 * (trace["start_s"] + trace["seconds"])
        assert all(span["ts"] < end and span["ts"] + span["dur"] > begin for span in mine)
    steps = [{s["args"]["step"] for s in spans if s["pid"] == rank} for rank in range(3)]
    assert steps[0] & steps[1] & steps[2], "no step is seen on all stages"

    ended = stream.end()
    assert (ended.status_code, ended.json()["error"]["code"]) == (499, "request_cancelled")
    first(three, lambda p: not p["requests"] and not any(n["sequences"] for n in p["nodes"]))
    assert three.http.delete("/v1/requests/to-be-ended").status_code == 404


def values(text: str) -> dict[str, list[float]]:
    """Samples by name."""
    found: dict[str, list[float]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault(sample.name, []).append(sample.value)
    return found


def test_metrics_of_the_cluster_and_of_each_node(three: Cluster) -> None:
    three.complete(list(range(100, 120)), 8)
    found = values(three.http.get("/metrics").text)
    for name in (
        "mlxc_time_to_first_token_seconds_count",
        "mlxc_request_queue_time_seconds_count",
        "mlxc_inter_token_latency_seconds_count",
    ):
        assert found[name][0] > 0, name
    assert len(found["mlxc_stage_compute_seconds_total"]) == 3
    assert len(found["mlxc_heartbeat_age_seconds"]) == 3
    for rank in range(3):
        url = f"http://{HOST}:{three.ports.nodes[rank][2]}/metrics"
        own = values(httpx.get(url, timeout=ANSWER_DEADLINE).text)
        [computed] = own["mlxc_stage_compute_seconds_total"]
        assert computed > 0
        sent = own["mlxc_hop_tensor_bytes_total"][0]
        assert (sent > 0) == (rank < 2)  # the last rank sends tokens only


def set_config(cluster: Cluster, key: str, value: str) -> None:
    async def call() -> None:
        client = CoordinatorClient(HOST, cluster.ports.coordinator)
        try:
            change = await client.set_config({key: value})
        finally:
            await client.close()
        assert not change.refused

    asyncio.run(call())


def test_the_level_of_logs_changes_on_all_ranks_and_lines_name_their_request(
    three: Cluster,
) -> None:
    set_config(three, "observe.log_level", "debug")
    try:
        told: set[int] = set()

        def all_have_told() -> bool:
            headers = {"x-request-id": "for-the-log"}
            body = three.body(list(range(100, 120)), 1)
            assert three.http.post("/v1/completions", json=body, headers=headers).is_success
            lines = three.http.get("/v1/cluster/logs?lines=1000").json()["data"]
            mine = [line for line in lines if line.get("request_id") == "for-the-log"]
            assert all(line["node"] and line["epoch"] for line in mine)
            told.update(line["rank"] for line in mine if line["event"] == "admitted")
            return told == {0, 1, 2}

        wait_until(all_have_told, "a debug line of each rank")
    finally:
        set_config(three, "observe.log_level", "info")
