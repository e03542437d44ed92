"""Families whose layers hand on more than one hidden state."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import mlx.core as mx
import mlx.nn as nn

from pipeline.split.adapters.base import Adapter
from pipeline.split.message import Tree
from pipeline.split.modules import override

if TYPE_CHECKING:
    from pipeline.split.run import Run
    from pipeline.split.stage import Stage


class KimiK3(Adapter):
    """Attention over earlier residuals: the hidden state [B, L, D] and the closed blocks [blocks, B, L, D]."""

    def encode(self, run: Run, output: Any, kwargs: dict[str, Any]) -> Tree:
        hidden, blocks = output
        return hidden, None if blocks is None else blocks.raw

    def decode(self, run: Run, hidden: Tree) -> Any:
        state, raw = hidden
        if raw is None:
            return state, None
        model = run.stage.model
        blocks = sys.modules[type(model).__module__].ResidualBlocks(
            model.args.text_config.rms_norm_eps
        )
        wide = raw.astype(mx.float32)
        blocks.raw = raw
        blocks.inv_rms = mx.rsqrt((wide * wide).mean(axis=-1) + blocks.eps)
        return state, blocks


class MuseSpark(Adapter):
    """Each layer also makes the next one's normed input; the stage of that next layer makes it itself."""

    def before_exit(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        return {**kwargs, "next_norm": None}

    def encode(self, run: Run, output: Any, kwargs: dict[str, Any]) -> Tree:
        return output[0]

    def decode(self, run: Run, hidden: Tree) -> Any:
        model = run.stage.model
        norm = model.layers[run.stage.start].input_layernorm
        pre_norm = sys.modules[type(model).__module__].pre_norm
        return hidden, pre_norm(hidden, norm, dtype=norm.weight.dtype)


class Talkie(Adapter):
    """Every layer reads the embedding, so its output [B, L, D] travels along."""

    def attach(self, stage: Stage) -> None:
        embedding = stage.model.model.embed
        base = type(embedding)

        def call(module: nn.Module, tokens: mx.array) -> mx.array:
            extras = stage.run.extras
            if stage.is_first:
                extras["embedding"] = base.__call__(module, tokens)
            embedded: mx.array = extras["embedding"]
            return embedded

        override(embedding, __call__=call)
