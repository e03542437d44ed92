"""What this machine lends to a stage: memory, and the size of prefill step that its device computes well."""

from __future__ import annotations

import mlx.core as mx
import psutil

CPU_CHUNK, GPU_CHUNK = 128, 512
"""Prompt tokens per prefill step where the configuration leaves it open."""


def this_node(memory_share: float, memory: int | None = None) -> int:
    """Bytes that parameters and caches may take on this node: `memory_share` (0..1] of its memory.

    `memory`: bytes of the node if configured; else those of its GPU, or of the machine without one.
    """
    if memory is not None:
        return int(memory_share * memory)
    if mx.default_device() == mx.gpu:
        return gpu_memory(memory_share)
    return int(memory_share * psutil.virtual_memory().total)


def prefill_chunk(configured: int | None) -> int:
    """Prompt tokens of one prefill step: as configured; None (auto): what suits the default device."""
    if configured is not None:
        return configured
    return GPU_CHUNK if mx.default_device() == mx.gpu else CPU_CHUNK


def gpu_memory(memory_share: float) -> int:  # needs Metal or CUDA: not covered by tests on a CPU
    """Bytes of the GPU that MLX computes on; on Metal no more than macOS keeps resident for it."""
    info = mx.device_info()
    sizes = [int(info[key]) for key in ("memory_size", "total_memory") if key in info]
    share = int(memory_share * (sizes[0] if sizes else psutil.virtual_memory().total))
    return min(share, int(info.get("max_recommended_working_set_size", share)))
