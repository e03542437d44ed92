"""Adapters: small exceptions for the families whose layers exchange more than what a layer returns."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module

import mlx.nn as nn

from pipeline.split.adapters.base import Adapter
from pipeline.split.modules import architecture_of

_HERE = "pipeline.split.adapters"
_BY_ARCHITECTURE = {
    "afm7": ("shared_kv", "Afm7"),
    "dbrx": ("dbrx", "Dbrx"),
    "deepseek_v41": ("deepseek_v41", "DeepseekV41"),
    "gemma3n": ("shared_kv", "Gemma3n"),
    "gemma4": ("shared_kv", "Gemma4"),
    "gemma4_text": ("shared_kv", "Gemma4"),
    "iquestloopcoder": ("iquestloopcoder", "IQuestLoopCoder"),
    "kimi_k3": ("residual", "KimiK3"),
    "minimax_m3_vl": ("minimax_m3_vl", "MiniMaxM3"),
    "muse_spark": ("residual", "MuseSpark"),
    "talkie": ("residual", "Talkie"),
}


def make_adapter(model: nn.Module) -> Adapter:
    """A fresh adapter for the architecture of `model`; imports only the modules of that architecture."""
    entry = _BY_ARCHITECTURE.get(architecture_of(model))
    if entry is None:
        return Adapter()
    module, name = entry
    made: Callable[[], Adapter] = getattr(import_module(f"{_HERE}.{module}"), name)
    return made()


__all__ = ["Adapter", "make_adapter"]
