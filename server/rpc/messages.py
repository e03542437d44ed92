"""Between the messages of cluster.proto and the records; all are validated on the way in.

What ranks measure stands in server.rpc.measures.
"""

from __future__ import annotations

from math import isfinite
from typing import Any

from server.rpc import cluster_pb2 as pb
from server.rpc import measures
from server.rpc.errors import InvalidMessage
from server.rpc.fields import MAX_TEXT, optional, require, text_from
from server.rpc.records import (
    LEADER,
    ClusterSnapshot,
    Counters,
    HealthPolicy,
    Heartbeat,
    Memory,
    Ports,
    RankReport,
    RankSnapshot,
    RankState,
    Registration,
    Versions,
)
from server.rpc.wishes import Wishes

MAX_RANKS = 1024  # of a ring; snapshots enumerate them
# Protobuf's types are unknown to the type checker; this names them in signatures.
Message = Any

_PREFIX = "RANK_STATE_"


def registration_to(record: Registration) -> Message:
    ports, versions = record.ports, record.versions
    return pb.RegisterRequest(
        epoch=record.epoch,
        rank=record.rank,
        size=record.size,
        node=record.node,
        host=record.host,
        pid=record.pid,
        ports=pb.Ports(
            inference=ports.inference, communication=ports.communication, health=ports.health
        ),
        layer_start=record.layer_start,
        layer_end=record.layer_end,
        num_layers=record.num_layers,
        model=record.model,
        fingerprint=record.fingerprint,
        versions=pb.Versions(
            python=versions.python,
            mlx=versions.mlx,
            mlx_lm=versions.mlx_lm,
            project=versions.project,
        ),
    )


def registration_from(message: Message) -> Registration:
    """Raises InvalidMessage, naming the field."""
    _check_size(message.size)
    require(message.rank < message.size, "rank", f"{message.rank} is not below {message.size}")
    require(message.pid >= 1, "pid", "must be at least 1")
    start, end, total = message.layer_start, message.layer_end, message.num_layers
    require(start < end, "layer_end", f"{end} is not above layer_start {start}")
    require(end <= total, "layer_end", f"{end} is above num_layers {total}")
    return Registration(
        epoch=message.epoch,
        rank=message.rank,
        size=message.size,
        node=text_from(message.node, "node"),
        host=text_from(message.host, "host"),
        pid=message.pid,
        ports=_ports(message.ports),
        layer_start=start,
        layer_end=end,
        num_layers=total,
        model=text_from(message.model, "model"),
        fingerprint=text_from(message.fingerprint, "fingerprint"),
        versions=_versions(message.versions),
    )


def heartbeat_to(record: Heartbeat) -> Message:
    report = record.report
    memory, counters = report.memory, report.counters
    return pb.HeartbeatRequest(
        epoch=record.epoch,
        rank=record.rank,
        node=record.node,
        state=_PREFIX + report.state.name,
        reason=report.reason[:MAX_TEXT],
        load_progress=report.load_progress,
        parameter_bytes=report.parameter_bytes,
        memory=pb.Memory(
            active_bytes=memory.active,
            peak_bytes=memory.peak,
            cache_bytes=memory.cache,
            limit_bytes=memory.limit,
        ),
        sequences=report.sequences,
        last_step_age_s=report.last_step_age_s,
        counters=None if counters is None else _counters_to(counters),
        config_revision=record.config_revision,
        stage=report.stage and measures.stage_to(report.stage),
        resources=report.resources and measures.resources_to(report.resources),
    )


def heartbeat_from(message: Message) -> Heartbeat:
    """Raises InvalidMessage, naming the field."""
    report = RankReport(
        state=_reported_state(message.state),
        reason=text_from(message.reason, "reason", empty=True),
        load_progress=optional(message, "load_progress", high=1.0),
        parameter_bytes=message.parameter_bytes,
        memory=_memory(message.memory),
        sequences=message.sequences,
        last_step_age_s=optional(message, "last_step_age_s"),
        counters=_counters(message.counters) if message.HasField("counters") else None,
        stage=measures.stage_from(message),
        resources=measures.resources_from(message),
    )
    node = text_from(message.node, "node")
    require(message.rank < MAX_RANKS, "rank", f"{message.rank} is not below {MAX_RANKS}")
    return Heartbeat(message.epoch, message.rank, node, report, message.config_revision)


def cluster_to(record: ClusterSnapshot) -> Message:
    return pb.ClusterStatus(
        epoch=record.epoch,
        size=record.size,
        leader=LEADER,
        ready=record.ready,
        reason=record.reason,
        config_revision=record.config_revision,
        ranks=[_rank_to(record.epoch, rank) for rank in record.ranks],
        wishes=_wishes_to(record.wishes),
    )


def cluster_from(message: Message) -> ClusterSnapshot:
    """Raises InvalidMessage, naming the field."""
    _check_size(message.size)
    ranks = tuple(_rank_from(rank) for rank in message.ranks)
    wishes = _wishes_from(message.wishes) if message.HasField("wishes") else Wishes()
    return ClusterSnapshot(message.epoch, message.size, message.config_revision, ranks, wishes)


def _wishes_to(record: Wishes) -> Message | None:
    if record == Wishes():
        return None
    return pb.Wishes(revision=record.revision, leader=record.leader, draining=record.draining)


def _wishes_from(message: Message) -> Wishes:
    leader = draining = None
    if message.HasField("leader"):
        leader = text_from(message.leader, "wishes.leader", empty=True)
    if message.HasField("draining"):
        draining = message.draining
    return Wishes(message.revision, leader, draining)


def policy_to(record: HealthPolicy) -> Message:
    return pb.HealthPolicy(
        heartbeat_interval_s=record.interval_s, failure_threshold=record.failure_threshold
    )


def policy_from(message: Message) -> HealthPolicy:
    """Raises InvalidMessage, naming the field."""
    interval, threshold = message.heartbeat_interval_s, message.failure_threshold
    usable = isfinite(interval) and interval > 0
    require(usable, "policy.heartbeat_interval_s", f"{interval:g} is not above 0")
    require(threshold >= 1, "policy.failure_threshold", "must be at least 1")
    return HealthPolicy(interval, threshold)


def _rank_to(epoch: int, record: RankSnapshot) -> Message:
    beat = None
    if record.report is not None:
        beat = heartbeat_to(
            Heartbeat(epoch, record.rank, record.node, record.report, record.config_revision)
        )
    return pb.RankStatus(
        registration=registration_to(record.registration),
        heartbeat=beat,
        state=_PREFIX + record.state.name,
        reason=record.reason,
        heartbeat_age_s=record.heartbeat_age_s,
    )


def _rank_from(message: Message) -> RankSnapshot:
    beat = heartbeat_from(message.heartbeat) if message.HasField("heartbeat") else None
    return RankSnapshot(
        registration=registration_from(message.registration),
        report=beat.report if beat else None,
        config_revision=beat.config_revision if beat else 0,
        state=_state(message.state),
        reason=message.reason,
        heartbeat_age_s=message.heartbeat_age_s,
    )


def _check_size(size: int) -> None:
    require(1 <= size <= MAX_RANKS, "size", f"{size} is not between 1 and {MAX_RANKS}")


def _ports(message: Message) -> Ports:
    for name in ("inference", "communication", "health"):
        port = getattr(message, name)
        require(1 <= port <= 65535, f"ports.{name}", f"{port} is not between 1 and 65535")
    return Ports(message.inference, message.communication, message.health)


def _versions(message: Message) -> Versions:
    return Versions(
        python=text_from(message.python, "versions.python"),
        mlx=text_from(message.mlx, "versions.mlx"),
        mlx_lm=text_from(message.mlx_lm, "versions.mlx_lm"),
        project=text_from(message.project, "versions.project"),
    )


def _memory(message: Message) -> Memory:
    return Memory(
        message.active_bytes, message.peak_bytes, message.cache_bytes, message.limit_bytes
    )


def _counters_to(record: Counters) -> Message:
    return pb.Counters(
        frames_sent=record.frames_sent,
        frames_received=record.frames_received,
        bytes_sent=record.bytes_sent,
        bytes_received=record.bytes_received,
    )


def _counters(message: Message) -> Counters:
    return Counters(
        message.frames_sent, message.frames_received, message.bytes_sent, message.bytes_received
    )


def _state(number: int) -> RankState:
    # An enum of proto3 is open: a later sender may know states that this one does not.
    name = pb.RankState.Name(number) if number in pb.RankState.values() else ""
    state = RankState.__members__.get(name.removeprefix(_PREFIX))
    if state is None:
        raise InvalidMessage(f"state: {number} is not a known state")
    return state


def _reported_state(number: int) -> RankState:
    state = _state(number)
    require(state is not RankState.DEAD, "state", "only the coordinator declares a rank dead")
    return state
