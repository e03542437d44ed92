"""The launcher before a cluster with TLS on every connection: a killed rank is not seen by a client."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests.cluster.harness import HOST, is_running, wait_until
from tests.cluster.tls import SupervisedTlsCluster, two_ranks

PROMPT = (2, 7, 1, 8, 2, 8, 1, 8)
TOKENS = 400


@pytest.fixture
def cluster(tiny_model: Path, tmp_path: Path) -> Iterator[SupervisedTlsCluster]:
    cluster = SupervisedTlsCluster(two_ranks(tiny_model), tmp_path / "supervised", tensors=True)
    try:
        yield cluster.start().wait_ready()
    finally:
        cluster.kill()


def status(cluster: SupervisedTlsCluster) -> dict[str, Any]:
    """As the command has it from the front door."""
    found: dict[str, Any] = json.loads(cluster.command("status", "--json"))
    return found


@pytest.mark.parametrize(
    "victim", [pytest.param(0, marks=pytest.mark.soak), 1], ids=["rank 0", "the last rank"]
)
def test_a_killed_rank_is_not_seen(cluster: SupervisedTlsCluster, victim: int) -> None:
    undisturbed = cluster.complete(PROMPT, TOKENS)["text"]
    first = status(cluster)
    assert (first["state"], first["recoveries_total"]) == ("serving", 0)
    tunnels = [c for pid in cluster.pids for c in psutil.Process(pid).children()]
    assert len(tunnels) == 2
    with pytest.raises(httpx.TransportError):  # the front door's way to rank 0 is TLS as well
        httpx.get(f"http://{HOST}:{cluster.ports.nodes[0][0]}/health")

    before = cluster.pids
    assert through_a_kill(cluster, before[victim]) == undisturbed

    last = status(cluster)
    assert (last["state"], last["recoveries_total"]) == ("serving", 1)
    assert last["front_door"]["resumed"] >= 1
    cluster.pids = [rank["pid"] for rank in cluster.cluster()["ranks"]]
    assert not set(before) & set(cluster.pids)
    wait_until(lambda: not any(is_running(t.pid) for t in tunnels), "no old tunnel is left")
    assert cluster.complete(PROMPT, TOKENS)["text"] == undisturbed
    cluster.stop()


def through_a_kill(cluster: SupervisedTlsCluster, pid: int) -> str:
    """The text of a stream in whose middle a process dies."""
    text, killed = "", False
    body = cluster.body(PROMPT, TOKENS, stream=True)
    with cluster.http.stream("POST", "/v1/completions", json=body) as stream:
        assert stream.status_code == 200, stream.read()
        for line in stream.iter_lines():
            if not line.startswith("data: {"):
                continue
            document = json.loads(line.removeprefix("data: "))
            assert "error" not in document, document
            text += "".join(choice["text"] for choice in document["choices"])
            if text and not killed:
                os.kill(pid, signal.SIGKILL)
                killed = True
    assert killed
    return text
