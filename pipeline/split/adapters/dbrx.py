"""DBRX: picks experts on the host, which would evaluate the weights of a model that is only probed."""

from __future__ import annotations

import mlx.nn as nn

from pipeline.split.adapters.base import Adapter


class Dbrx(Adapter):
    """Splits like any other model."""

    def opaque(self, model: nn.Module) -> list[nn.Module]:
        return [layer.ffn for layer in model.layers]
