"""A consistent three-rank cluster to start from."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from server.rpc.records import Heartbeat, Ports, RankReport, RankState, Registration, Versions

LAYERS = ((0, 10), (10, 19), (19, 28))  # half-open, 28 layers
NODES = ("mini1", "mini2", "master")


def registration(rank: int, **changes: Any) -> Registration:
    start, end = LAYERS[rank]
    first_port = 8100 + 100 * rank
    whole = Registration(
        epoch=7,
        rank=rank,
        size=3,
        node=NODES[rank],
        host="127.0.0.1",
        pid=1000 + rank,
        ports=Ports(first_port, first_port + 1, first_port + 2),
        layer_start=start,
        layer_end=end,
        num_layers=28,
        model="demo",
        fingerprint="f00d",
        versions=Versions("3.11.7", "0.32.4", "0.32.2", "0.1.0"),
    )
    return replace(whole, **changes)


def heartbeat(
    rank: int, state: RankState = RankState.READY, config_revision: int = 0, **report: Any
) -> Heartbeat:
    return Heartbeat(7, rank, NODES[rank], RankReport(state, **report), config_revision)
