"""How much memory this machine lends to a stage."""

from __future__ import annotations

import mlx.core as mx
import psutil


def this_node(memory_share: float, memory: int | None = None) -> int:
    """Bytes that parameters and caches may take here: `memory_share` (0..1] of the node's memory.

    `memory`: bytes of the node if configured; else what its accelerator can use, or its RAM.
    """
    return int(memory_share * (usable_memory() if memory is None else memory))


def usable_memory() -> int:
    """Bytes of the device that MLX computes on."""
    if mx.default_device() == mx.gpu:
        reported = device_memory()
        if reported is not None:
            return reported
    return int(psutil.virtual_memory().total)


def device_memory() -> int | None:  # needs Metal or CUDA
    """Bytes of GPU memory; on Metal the part of unified memory that macOS lets a GPU keep."""
    info = mx.device_info()
    for key in ("max_recommended_working_set_size", "memory_size", "total_memory"):
        if isinstance(size := info.get(key), int) and size > 0:
            return size
    return None
