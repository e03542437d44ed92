"""Numbers of ranks, with and without names, with and without mlx.launch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cluster.conftest import Start
from tests.cluster.harness import HOST, Cluster, Spec, taken, wait_until
from tests.cluster.prompts import prompt

PORTS_BY_RULE = [8100, 8101, 8102, 8200, 8201, 8202, 8300, 8301, 8302]


def test_five_ranks_two_of_them_named(
    start: Start, shared: Callable[[str], Cluster], demo_model: Path
) -> None:
    if taken(PORTS_BY_RULE):
        pytest.skip(f"ports {taken(PORTS_BY_RULE)} are taken on this machine")
    cluster = start(Spec(ranks=5, named=2)).wait_ready()
    ranks = cluster.cluster()["ranks"]
    assert [rank["node"] for rank in ranks] == ["n0", "n1", "node2", "node3", "node4"]
    shown = [list(rank["ports"].values()) for rank in ranks]
    assert shown == [
        *(list(ports) for ports in cluster.ports.nodes),
        [8100, 8101, 8102],
        [8200, 8201, 8202],
        [8300, 8301, 8302],
    ]
    assert [rank["layers"]["count"] for rank in ranks] == sorted(
        (rank["layers"]["count"] for rank in ranks), key=lambda count: -count
    )
    assert sum(rank["layers"]["count"] for rank in ranks) == 30
    ids = prompt(demo_model, 300)
    assert cluster.complete(ids, 16)["text"] == shared("one").complete(ids, 16)["text"]
    cluster.stop()
    assert not taken(PORTS_BY_RULE)


def test_without_mlx_launch_one_rank_serves_alone(
    start: Start, shared: Callable[[str], Cluster], demo_model: Path
) -> None:
    cluster = start(Spec(ranks=1, plain=True)).wait_ready()
    ids = prompt(demo_model, 20)
    assert cluster.complete(ids, 16)["text"] == shared("one").complete(ids, 16)["text"]
    [inference, _, _] = cluster.ports.nodes[0]
    assert cluster.http.get(f"http://{HOST}:{inference}/v1/models").json()["data"]
    cluster.stop()


def test_the_banner_tells_where_it_is_and_what_to_try(three: Cluster) -> None:
    curl = f"curl {three.url}/v1/chat/completions"  # comes last, and a moment after it is ready
    wait_until(lambda: curl in three.log, "the banner")
    lines = three.log.splitlines()
    [first] = [n for n, line in enumerate(lines) if f"is served on {three.url} by 3 ranks" in line]
    for rank, entry in enumerate(three.cluster()["ranks"]):
        shown = lines[first + 1 + rank].split()
        assert shown[:3] == ["rank", str(rank), f"n{rank}"]
        assert [int(shown[4]), int(shown[6])] == entry["layers"]["range"]
        assert float(shown[-2]) == pytest.approx(entry["parameter_bytes"] / 1e6, abs=0.1)
