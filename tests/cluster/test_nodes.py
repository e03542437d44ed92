"""Every node's ports, what /v1/cluster and the coordinator say of the ranks, settings changed at run time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

import httpx
import mlx.core as mx
import psutil
import pytest

from server.rpc.client import CoordinatorClient
from server.rpc.records import RankState
from tests.cluster.conftest import Start
from tests.cluster.harness import (
    ANSWER_DEADLINE,
    HOST,
    Cluster,
    Spec,
    events,
    folder_model,
    wait_until,
)
from tests.cluster.prompts import prompt
from tests.cluster.tiny import make_folder

T = TypeVar("T")

LAYERS = 30  # of the demo model
IDLE_HEARTBEATS = 3  # during which an idle cluster is watched
IDLE_CPU_SHARE = 0.1  # of a core: far above what heartbeats cost, far below a spinning thread


def tensor_bytes(folder: Path) -> dict[str, int]:
    """Bytes of every tensor in the model's files."""
    files = sorted(folder.glob("*.safetensors"))
    return {name: array.nbytes for file in files for name, array in mx.load(str(file)).items()}


def layer_of(name: str) -> int | None:
    parts = name.split(".")
    return int(parts[parts.index("layers") + 1]) if "layers" in parts else None


def expected_bytes(folder: Path, first: int, last: int) -> int:
    """What a stage holds: its layers; the first one the embedding; the last one the norm and the tied head."""
    total = 0
    for name, size in tensor_bytes(folder).items():
        layer = layer_of(name)
        if layer is not None:
            total += size * (first <= layer <= last)
        elif "embed_tokens" in name:
            total += size * (first == 0 or last == LAYERS - 1)
        else:
            total += size * (last == LAYERS - 1)
    return total


@pytest.mark.parametrize("name", ["one", "two", "three"])
def test_the_ranks_hold_all_layers_and_no_other_parameters(
    shared: Callable[[str], Cluster], demo_model: Path, name: str
) -> None:
    cluster = shared(name)
    shown = cluster.cluster()
    ranks = shown["ranks"]
    assert [rank["rank"] for rank in ranks] == list(range(cluster.spec.ranks))
    assert [rank["node"] for rank in ranks] == [f"n{n}" for n in range(cluster.spec.ranks)]
    assert shown["ready"] is True
    ranges = [rank["layers"]["range"] for rank in ranks]
    assert ranges[0][0] == 0
    assert ranges[-1][1] == LAYERS - 1
    assert all(after[0] == before[1] + 1 for before, after in pairwise(ranges))
    for rank, (first, last) in zip(ranks, ranges, strict=True):
        assert rank["parameter_bytes"] == expected_bytes(demo_model, first, last)
        assert rank["memory"]["active_bytes"] >= rank["parameter_bytes"]


def test_every_inference_port_answers(three: Cluster, demo_model: Path) -> None:
    ids = prompt(demo_model, 20)
    expected = three.complete(ids, 5)["text"]
    for inference, _, _ in three.ports.nodes:
        url = f"http://{HOST}:{inference}/v1/completions"
        answer = httpx.post(url, json=three.body(ids, 5), timeout=ANSWER_DEADLINE)
        assert answer.json()["choices"][0]["text"] == expected
        body = three.body(ids, 5, stream=True)
        with httpx.stream("POST", url, json=body, timeout=ANSWER_DEADLINE) as stream:
            assert stream.headers["content-type"].startswith("text/event-stream")
            pieces = [event["choices"][0]["text"] for event in events(stream)]
        assert "".join(pieces) == expected
        assert len(pieces) > 3
        refused = httpx.post(url, json={**body, "model": "other"}, timeout=ANSWER_DEADLINE)
        assert refused.status_code == 404
        assert refused.json()["error"]["code"] == "model_not_found"


def test_every_health_port_answers_for_its_own_rank(three: Cluster) -> None:
    layers = [rank["layers"]["range"] for rank in three.cluster()["ranks"]]
    for rank, (_, _, port) in enumerate(three.ports.nodes):
        health = three.health(rank)
        assert (health["rank"], health["node"]) == (rank, f"n{rank}")
        assert (health["state"], health["layers"]) == ("ready", layers[rank])
        assert httpx.get(f"http://{HOST}:{port}/ready").status_code == 200


def wait_for_heartbeats(cluster: Cluster, count: int = 2) -> None:
    """Return once the coordinator has `count` new reports of every rank; the first may be an older one."""

    def arrived_since(began: float) -> bool:
        asked_after = time.monotonic() - began
        return all(rank["heartbeat_age_s"] < asked_after for rank in cluster.cluster()["ranks"])

    for _ in range(count):
        wait_until(partial(arrived_since, time.monotonic()), "a heartbeat of every rank")


def test_an_idle_cluster_uses_no_cpu(three: Cluster, demo_model: Path) -> None:
    """Processor time, which other processes of the machine don't take."""
    three.complete(prompt(demo_model, 20), 4)
    ranks = [psutil.Process(pid) for pid in three.pids]
    wait_for_heartbeats(three)

    def used() -> list[float]:
        return [sum(rank.cpu_times()[:2]) for rank in ranks]

    began, before = time.monotonic(), used()
    wait_for_heartbeats(three, IDLE_HEARTBEATS)
    elapsed = time.monotonic() - began
    shares = [(now - then) / elapsed for now, then in zip(used(), before, strict=True)]
    assert max(shares) < IDLE_CPU_SHARE, shares


# the coordinator


def ask(cluster: Cluster, question: Callable[[CoordinatorClient], Awaitable[T]]) -> T:
    async def call() -> T:
        client = CoordinatorClient(HOST, cluster.ports.coordinator)
        try:
            return await question(client)
        finally:
            await client.close()

    return asyncio.run(call())


def test_the_coordinator_knows_every_rank(three: Cluster) -> None:
    status = ask(three, CoordinatorClient.status)
    assert status.ready
    assert [rank.registration.pid for rank in status.ranks] == three.pids
    shown = three.cluster()["ranks"]
    for rank, entry in zip(status.ranks, shown, strict=True):
        assert list(rank.registration.layers) == entry["layers"]["range"]
        assert rank.registration.num_layers == LAYERS
        assert rank.report is not None
        assert rank.report.parameter_bytes == entry["parameter_bytes"]
        assert rank.state is RankState.READY


def test_heartbeats_keep_coming(three: Cluster, demo_model: Path) -> None:
    """What only a heartbeat brings is in the coordinator's answer soon after it happened."""

    def received() -> list[int]:
        ranks = ask(three, CoordinatorClient.status).ranks
        return [r.report.counters.frames_received for r in ranks if r.report and r.report.counters]

    before = received()
    assert len(before) == 3
    three.complete(prompt(demo_model, 20), 4)
    wait_until(
        lambda: all(now > old for now, old in zip(received(), before, strict=True)), "heartbeats"
    )


def change(cluster: Cluster, **changes: Any) -> Any:
    texts = {key.replace("__", "."): str(value) for key, value in changes.items()}
    return ask(cluster, lambda client: client.set_config(texts))


def test_a_dynamic_setting_takes_effect_at_once(three: Cluster, demo_model: Path) -> None:
    ids = prompt(demo_model, 20)
    assert not change(three, api_gateway__max_concurrent_requests=1).refused
    try:
        body = three.body(ids, 200, stream=True)
        with three.http.stream("POST", "/v1/completions", json=body) as running:
            lines = running.iter_lines()  # kept: httpx closes the stream of a forgotten iterator
            next(lines)
            refused = three.http.post("/v1/completions", json=three.body(ids, 4))
        assert refused.status_code == 503
        assert refused.json()["error"]["code"] == "overloaded"
        assert int(refused.headers["retry-after"]) > 0
    finally:
        assert not change(three, api_gateway__max_concurrent_requests=100).refused
    with ThreadPoolExecutor(2) as pool:
        texts = pool.map(lambda _: three.complete(ids, 4)["text"], range(2))
        assert len(set(texts)) == 1


def test_the_bound_on_inter_token_time_can_be_changed(three: Cluster) -> None:
    def in_force() -> Any:
        return three.cluster()["scheduling"]["inter_token_bound_ms"]

    assert in_force() == 1000.0
    assert not change(three, scheduler__inter_token_bound=0.25).refused
    try:
        wait_until(lambda: in_force() == 250.0, "the scheduler has it")
    finally:
        assert not change(three, scheduler__inter_token_bound=1.0).refused


def test_scheduler_settings_change_no_output(
    shared: Callable[[str], Cluster], three: Cluster, demo_model: Path
) -> None:
    ids = prompt(demo_model, 100, seed=57)  # nothing that the three have in their prefix caches
    expected = shared("one").complete(ids, 4)["text"]
    wait_until(lambda: three.sequences() == [0, 0, 0], "idle")
    wait_for_heartbeats(three)
    before = three.cluster()["ranks"][1]["counters"]["frames_received"]
    assert not change(three, scheduler__prefill_chunk_tokens=16).refused
    try:
        assert three.complete(ids, 4)["text"] == expected
        wait_until(
            # Step and Ready for each of 7 chunks and 3 further tokens; in one chunk they are 8.
            lambda: three.cluster()["ranks"][1]["counters"]["frames_received"] - before >= 20,
            "7 chunks of 16 tokens",
        )
    finally:
        assert not change(three, scheduler__prefill_chunk_tokens=128).refused


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("api_gateway.port", "9999"),
        ("api_gateway.timeout", "soon"),
        ("api_gateway.colour", "1"),
    ],
)
def test_a_refused_change_says_which_key(three: Cluster, key: str, value: str) -> None:
    answer = ask(three, lambda client: client.set_config({key: value}))
    assert list(answer.refused) == [key]
    assert key in answer.refused[key]


def test_all_settings_can_be_read(three: Cluster) -> None:
    entries = {e.key: e for e in ask(three, lambda client: client.get_config("api_gateway"))}
    assert entries["api_gateway.port"].value == str(three.ports.gateway)
    assert entries["api_gateway.port"].dynamic is False
    assert entries["api_gateway.timeout"].dynamic is True


# layers by config/models.yaml


def test_explicit_ranges_are_obeyed(start: Start, tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "model", "llama")
    ranges = [[0, 0], [1, 4], [5, 5]]
    sharding = {f"node_{n}": {"layers": layers} for n, layers in enumerate(ranges)}
    models = folder_model(folder, sharding=sharding, total_layers=6)
    cluster = start(Spec(ranks=3, models=models)).wait_ready()
    ranks = cluster.cluster()["ranks"]
    assert [rank["layers"]["range"] for rank in ranks] == ranges
    assert cluster.complete([5, 6, 7], 8)["finish_reason"] == "length"
    cluster.stop()
