"""What a stage shows of itself to other threads."""

from __future__ import annotations

from dataclasses import dataclass

import mlx.core as mx


@dataclass
class WorkerStats:
    """Counters for health and status; written by the engine thread, read by others."""

    steps: int = 0
    last_step: float | None = None  # time.monotonic()
    hung_at: float | None = None  # time.monotonic() by when what it does has to end; None: idle
    compute_seconds: float = 0.0
    wait_seconds: float = 0.0  # for the previous stage
    transfer_seconds: float = 0.0  # until the next stage had taken what was sent
    sent_bytes: int = 0  # of hidden states
    sequences: int = 0  # that run; not those retained for later prompts
    cache_bytes: int = 0
    peak_memory: int = 0  # bytes that MLX held at most, loading included

    def memory_used(self, share: int) -> float:
        """The part of this rank's share, in bytes, that was in use at most since it was last asked.

        Frees what MLX only holds back for later, where that is too much.  0 where nothing was shared out.
        """
        peak = mx.get_peak_memory()
        self.peak_memory = max(self.peak_memory, peak)
        if not share:
            return 0.0
        mx.reset_peak_memory()
        if peak + mx.get_cache_memory() > share:
            mx.clear_cache()
        return peak / share
