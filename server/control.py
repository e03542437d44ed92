"""A rank's part in the control plane: who it is, how it is, and what changes at run time."""

from __future__ import annotations

import time
from collections.abc import Callable

from config import Config
from config.keys import format_key
from pipeline.placement import Placement
from pipeline.rank import Phase, Rank
from pipeline.worker_stats import WorkerStats
from server.rpc.errors import BindError
from server.rpc.records import (
    LEADER,
    Counters,
    Memory,
    Ports,
    RankReport,
    RankState,
    Registration,
    Resources,
    StageTimes,
    Versions,
)

_STATES = {
    Phase.JOINING: RankState.STARTING,
    Phase.LOADING: RankState.LOADING,
    Phase.READY: RankState.READY,
}


def registration_of(placement: Placement, model: str) -> Registration:
    """What this rank registers with."""
    meeting, layers = placement.meeting, placement.layers
    node, card = meeting.node, meeting.card
    return Registration(
        epoch=meeting.epoch,
        rank=meeting.rank,
        size=meeting.size,
        node=node.name,
        host=meeting.host,
        pid=card.pid,
        ports=Ports(node.ports.inference, node.ports.communication, node.ports.health),
        layer_start=layers.start,
        layer_end=layers.end,
        num_layers=placement.checkpoint.num_layers,
        model=model,
        fingerprint=placement.checkpoint.fingerprint,
        versions=Versions(
            python=card.python,
            mlx=card.versions["mlx"],
            mlx_lm=card.versions["mlx-lm"],
            project=card.versions["mlx-cluster"],
        ),
    )


def port_problem(config: Config, placement: Placement, error: BindError) -> str:
    """What can't be listened on, with the setting that wants it."""
    node = placement.meeting.node
    users = [(format_key(("nodes", node.name, "ports")), port) for port in node.ports]
    if placement.meeting.rank == LEADER:
        users.append(("api_gateway.port", config.api_gateway.port))
        users.append(("coordinator.port", config.coordinator.port))
    keys = sorted(key for key, port in users if port == error.port)
    return f"{' and '.join(keys)}: {error}" if keys else str(error)


def _stage_times(stats: WorkerStats) -> StageTimes:
    return StageTimes(
        stats.steps,
        stats.compute_seconds,
        stats.wait_seconds,
        stats.transfer_seconds,
        stats.sent_bytes,
    )


class Reporter:
    """Makes the report that goes into heartbeats and onto the health port."""

    def __init__(self, rank: Rank) -> None:
        self._rank = rank
        self.serving = False  # all that this rank adds to the engine is up
        self.draining = False
        self.resources: Callable[[], Resources | None] = lambda: None

    def __call__(self) -> RankReport:
        """How this rank is at this moment."""
        rank = self._rank
        state, reason = self._state()
        memory = rank.memory()
        stats = rank.worker.stats if rank.worker is not None else None
        last = stats.last_step if stats is not None else None
        return RankReport(
            state=state,
            reason=reason,
            load_progress=rank.load_progress if state is RankState.LOADING else None,
            parameter_bytes=rank.parameter_bytes,
            memory=Memory(memory.active, memory.peak, memory.cache, memory.limit),
            sequences=stats.sequences if stats is not None else 0,
            last_step_age_s=None if last is None else time.monotonic() - last,
            counters=Counters(*rank.traffic()),
            stage=None if stats is None else _stage_times(stats),
            resources=self.resources(),
        )

    def _state(self) -> tuple[RankState, str]:
        rank = self._rank
        if rank.phase is Phase.ENDED:
            error = rank.ended.exception(timeout=0) if rank.ended.done() else None
            return (RankState.FAILED, str(error)) if error else (RankState.DRAINING, "stopping")
        if self.draining:
            return RankState.DRAINING, "stopping"
        if rank.phase is Phase.READY and not self.serving:
            return RankState.LOADING, "warming up"
        return _STATES[rank.phase], ""
