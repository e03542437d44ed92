"""Between messages and records of what ranks measure: stages, resources, timelines, logs."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from server.rpc import cluster_pb2 as pb
from server.rpc.fields import number_from, optional, require, text_from
from server.rpc.records import (
    LogBatch,
    Resources,
    StageTimes,
    TimelineOrder,
    TimelineReport,
    TimelineSpan,
)

Message = Any

MAX_LINES = 1000  # of one LogBatch

_BYTES = (
    "memory_used",
    "memory_total",
    "process_memory",
    "disk_used",
    "disk_total",
    "network_sent",
    "network_received",
)


def stage_to(record: StageTimes) -> Message:
    return pb.StageTimes(**asdict(record))


def stage_from(beat: Message) -> StageTimes | None:
    """Of a heartbeat."""
    if not beat.HasField("stage"):
        return None
    stage = beat.stage
    seconds = {
        name: number_from(getattr(stage, name), f"stage.{name}")
        for name in ("compute_s", "wait_s", "transfer_s")
    }
    return StageTimes(steps=stage.steps, sent_bytes=stage.sent_bytes, **seconds)


def resources_to(record: Resources) -> Message:
    values = asdict(record)
    return pb.Resources(**{f"{k}_bytes" if k in _BYTES else k: v for k, v in values.items()})


def resources_from(beat: Message) -> Resources | None:
    """Of a heartbeat."""
    if not beat.HasField("resources"):
        return None
    message = beat.resources
    return Resources(
        cores=message.cores,
        cpu_percent=number_from(message.cpu_percent, "resources.cpu_percent"),
        process_cpu_percent=number_from(
            message.process_cpu_percent, "resources.process_cpu_percent"
        ),
        temperature_c=optional(message, "temperature_c"),
        power_w=optional(message, "power_w"),
        **{name: getattr(message, f"{name}_bytes") for name in _BYTES},
    )


def order_to(record: TimelineOrder) -> Message:
    return pb.TimelineOrder(**asdict(record))


def order_from(reply: Message) -> TimelineOrder | None:
    """Of the answer to a heartbeat."""
    if not reply.HasField("timeline"):
        return None
    order = reply.timeline
    start, seconds = number_from(order.start_s, "start_s"), number_from(order.seconds, "seconds")
    return TimelineOrder(order.id, start, seconds)


def timeline_to(record: TimelineReport) -> Message:
    return pb.TimelineReport(
        epoch=record.epoch,
        rank=record.rank,
        node=record.node,
        order=record.order,
        spans=[pb.TimelineSpan(**asdict(span)) for span in record.spans],
        more=record.more,
    )


def timeline_from(message: Message, activities: int, max_ranks: int) -> TimelineReport:
    """Raises InvalidMessage, naming the field."""
    require(message.rank < max_ranks, "rank", f"{message.rank} is not below {max_ranks}")
    return TimelineReport(
        epoch=message.epoch,
        rank=message.rank,
        node=text_from(message.node, "node"),
        order=message.order,
        spans=tuple(_span(span, activities) for span in message.spans),
        more=message.more,
    )


def logs_to(record: LogBatch) -> Message:
    return pb.LogBatch(**asdict(record))


def logs_from(message: Message, max_ranks: int) -> LogBatch:
    """Raises InvalidMessage, naming the field."""
    require(message.rank < max_ranks, "rank", f"{message.rank} is not below {max_ranks}")
    require(len(message.lines) <= MAX_LINES, "lines", f"more than {MAX_LINES}")
    node = text_from(message.node, "node")
    return LogBatch(message.epoch, message.rank, node, tuple(message.lines), message.dropped)


def _span(message: Message, activities: int) -> TimelineSpan:
    require(message.activity < activities, "activity", f"{message.activity} is not known")
    return TimelineSpan(
        activity=message.activity,
        start_s=number_from(message.start_s, "start_s"),
        seconds=number_from(message.seconds, "seconds"),
        step=message.step,
    )
