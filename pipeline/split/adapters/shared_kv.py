"""Families whose later layers read K/V of earlier ones.

In Gemma each layer also has an input of its own, which the first stage makes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import mlx.core as mx
import mlx.nn as nn

from pipeline.split.adapters.base import Adapter
from pipeline.split.blueprint import LayerCall
from pipeline.split.message import Tree
from pipeline.split.modules import override

if TYPE_CHECKING:
    from pipeline.split.run import Run
    from pipeline.split.stage import Stage


class Afm7(Adapter):
    """The layers that reuse K/V get them from the last layer with a cache, by the code between the layers.

    Their queries take the position from the length of the keys, padding included, so a batch of
    sequences of unequal lengths would turn all but the longest by wrong angles.
    """

    batchable = False

    def shared_caches(
        self, model: nn.Module, calls: Sequence[LayerCall], num_layers: int
    ) -> Mapping[int, frozenset[int]]:
        last = len(model.model.layers) - 1
        return {last: frozenset(range(last, num_layers))}


class _PerLayerInputs(Adapter):
    """The first stage makes an input for every layer, [B, L, layers, D]; the rest of them travels on."""

    project: str  # the method that makes them

    def inner(self, model: nn.Module) -> nn.Module:
        """The module whose code runs the layers."""
        raise NotImplementedError

    def attach(self, stage: Stage) -> None:
        inner = self.inner(stage.model)
        base = type(inner)

        def project(
            self_: nn.Module, hidden: mx.array, per_layer: mx.array | None = None
        ) -> mx.array:
            extras = stage.run.extras
            if stage.is_first:
                extras["per_layer"] = getattr(base, self.project)(self_, hidden, per_layer)
            made: mx.array = extras["per_layer"]
            return made

        override(inner, **{self.project: project})

    def receive(self, run: Run) -> None:
        if "per_layer" in run.extras:  # the model indexes them by layer
            front = (run.stage.start, 0)
            run.extras["per_layer"] = mx.pad(
                run.extras["per_layer"], [(0, 0), (0, 0), front, (0, 0)]
            )

    def send(self, run: Run) -> dict[str, Any]:
        if "per_layer" not in run.extras:
            return {}
        return {"per_layer": run.extras["per_layer"][:, :, run.stage.end :]}


class Gemma3n(_PerLayerInputs):
    """Gemma 3n."""

    project = "project_per_layer_inputs"

    def inner(self, model: nn.Module) -> nn.Module:
        inner: nn.Module = model.model.language_model
        return inner


class Gemma4(_PerLayerInputs):
    """Gemma 4: a layer also returns its K/V and offset, and takes those of the layer that it shares with."""

    project = "_project_per_layer_inputs"

    def inner(self, model: nn.Module) -> nn.Module:
        inner: nn.Module = getattr(model, "language_model", model).model
        return inner

    def shared_caches(
        self, model: nn.Module, calls: Sequence[LayerCall], num_layers: int
    ) -> Mapping[int, frozenset[int]]:
        users: dict[int, set[int]] = {}
        for layer, source in enumerate(self.inner(model).previous_kvs):
            users.setdefault(source, set()).add(layer)
        return {cache: frozenset(layers) for cache, layers in users.items() if len(layers) > 1}

    def encode(self, run: Run, output: Any, kwargs: dict[str, Any]) -> Tree:
        return output[0]

    def hole(self, run: Run, layer: int, kwargs: dict[str, Any]) -> Any:
        kv, offset = run.fetched.get(layer, (None, None))
        return run.hidden, kv, offset
