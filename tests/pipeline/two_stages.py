"""Two ranks in one process, which are joined by frames only."""

from __future__ import annotations

import socket
from typing import Any

from pipeline.link import Connection, Links
from pipeline.sampler import Sampler
from pipeline.split import Stage, probe
from pipeline.worker import Worker
from tests.pipeline.split.tiny import CONFIGS
from tests.pipeline.tiny_models import make_model

DEADLINE = 60.0
VOCABULARY = 97


class NoRing:
    """Two ranks that must not need a ring."""

    size = 2

    def __init__(self, rank: int) -> None:
        self.rank = rank

    def flush(self) -> None:
        pass

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"the ring's {name} is used")


def two_links() -> list[Links]:
    """Of both ranks; they are to be closed."""
    ends = [socket.socketpair() for _ in range(2)]
    return [
        Links(Connection(ends[1 - rank][1], "previous"), Connection(ends[rank][0], "next"))
        for rank in range(2)
    ]


def worker_of(architecture: str, rank: int, links: Links) -> Worker:
    """Of one half of the model."""
    model, blueprint = make_model(CONFIGS[architecture]), probe(make_model(CONFIGS[architecture]))
    cut = blueprint.num_layers // 2
    start, end = [(0, cut), (cut, blueprint.num_layers)][rank]
    sampler = Sampler(VOCABULARY) if rank else None
    ring: Any = NoRing(rank)
    stage = Stage(model, blueprint, start, end)
    return Worker(stage, 1, ring, links, sampler, DEADLINE, parcels=True)
