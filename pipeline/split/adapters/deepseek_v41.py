"""DeepSeek V4.1: layers share compressed K/V, index keys, candidates and top-k through a dict."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import mlx.nn as nn
from mlx_lm.models import deepseek_v41 as upstream

from pipeline.split.adapters.base import Adapter
from pipeline.split.message import Tree

if TYPE_CHECKING:
    from pipeline.split.run import Run

_GROWING = ("compress_kv", "index_k")  # one entry per few tokens; a stage keeps the earlier ones


class DeepseekV41(Adapter):
    """Sends what later layers read: new entries of what grows, and the step's own candidates and top-k."""

    def extra_caches(self, model: nn.Module, start: int) -> list[Any]:
        """One that keeps the growing entries made by earlier stages."""
        return [] if start == 0 else [upstream.LayerCache(model.args.sliding_window)]

    def encode(self, run: Run, output: Any, kwargs: dict[str, Any]) -> Tree:
        args, shared = run.stage.model.args, kwargs["shared"]
        sent: dict[str, Tree] = {}
        for key, source in upstream._crossing(args, run.stage.end).items():
            part = shared.get(key)
            if part is not None and key in _GROWING:
                part = part[:, upstream._entries(args, source, kwargs["start_pos"]) :]
            if part is not None and part.size:
                sent[key] = part
        return {"output": output, "shared": sent}

    def hole(self, run: Run, layer: int, kwargs: dict[str, Any]) -> Any:
        if run.memo is None:
            run.memo = (run.hidden["output"], self._shared(run, kwargs))
        output, shared = run.memo
        kwargs["shared"].update(shared)
        return output

    def _shared(self, run: Run, kwargs: dict[str, Any]) -> dict[str, Any]:
        kept = run.caches[run.stage.caches.first_extra]
        kept.offset = kwargs["start_pos"] + kwargs["window_idx"].shape[1]
        shared = dict(run.hidden.get("shared", {}))
        for key in _GROWING:
            if key in shared:
                setattr(kept, key, upstream._append(getattr(kept, key), shared[key]))
            if (entries := getattr(kept, key)) is not None:
                shared[key] = entries
        return shared
