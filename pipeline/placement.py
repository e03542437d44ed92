"""What a rank holds, and what its scheduler may therefore keep."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from config import Config
from pipeline.checkpoint import Checkpoint
from pipeline.meeting import Meeting
from pipeline.plan import LayerRange, Plan
from pipeline.plan.resources import prefill_chunk
from pipeline.scheduler import Limits
from pipeline.served_model import max_model_len
from pipeline.split import can_pad, cut_limit

DEFAULT_PREFIX_TOKENS = 1 << 16
"""Tokens of finished sequences that are kept where nobody knows what a token takes."""

PREFIXES, STATEFUL_PREFIXES = 1024, 16
"""Finished sequences that are kept; few where each has a state whose size is not in its tokens."""


@dataclass(frozen=True)
class Placement:
    """What this rank holds, as planned before loading."""

    meeting: Meeting
    checkpoint: Checkpoint
    plan: Plan

    @property
    def layers(self) -> LayerRange:
        """The layers of this rank, half-open."""
        return self.plan.ranges[self.meeting.rank]

    @property
    def memory_bytes(self) -> int:
        """What weights and caches of this rank may take."""
        return self.meeting.memory_bytes(self.meeting.rank)

    @property
    def last(self) -> bool:
        """Whether this rank samples."""
        return self.meeting.rank == self.meeting.size - 1


def kv_capacity(config: Config, placement: Placement, parameter_bytes: int) -> int | None:
    """Cache entries for which this node has memory; None where the architecture hides their size."""
    costs, layers = placement.checkpoint.costs(), placement.layers
    if costs.kv_bytes_per_token is None:
        return None
    per_token = sum(costs.kv_bytes_per_token[layers.start : layers.end])
    if per_token == 0:
        return None
    free = placement.memory_bytes - parameter_bytes
    return max(0, int(free * config.scheduler.kv_memory_share)) // per_token


def limits_of(config: Config, placement: Placement, kv_tokens: int | None) -> Limits:
    """Of the scheduler on rank 0; `kv_tokens`: the least capacity of all nodes."""
    blueprint = placement.checkpoint.blueprint()
    limit = cut_limit(blueprint.caches)
    return Limits(
        stages=placement.meeting.size,
        **_dynamic(config),
        batchable=blueprint.batchable,
        paddable=can_pad(blueprint.caches),
        context=max_model_len(config, placement.checkpoint),
        kv_tokens=kv_tokens,
        groups=config.scheduler.groups,
        loops=blueprint.passes,
        prefix_tokens=_prefix_tokens(config, kv_tokens),
        prefix_sequences=STATEFUL_PREFIXES if limit == 0 else PREFIXES,
        cut_limit=limit,
    )


def reconfigured(limits: Limits, config: Config) -> Limits:
    """The limits once settings have changed that may change while it runs."""
    return replace(limits, **_dynamic(config))


def _dynamic(config: Config) -> dict[str, Any]:
    """What follows from such settings."""
    scheduler, most = config.scheduler, config.api_gateway.max_concurrent_requests
    return {
        "max_requests": most,
        "max_running": most,
        "max_group": scheduler.max_batch_size,
        "prefill_chunk": prefill_chunk(scheduler.prefill_chunk_tokens),
        "fixed_chunk": scheduler.prefill_chunk_tokens is not None,
        "inter_token": scheduler.inter_token_bound,
    }


def _prefix_tokens(config: Config, kv_tokens: int | None) -> int:
    configured = config.scheduler.prefix_cache_tokens
    if configured is not None:
        return configured
    return DEFAULT_PREFIX_TOKENS if kv_tokens is None else kv_tokens // 2
