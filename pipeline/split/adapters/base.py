"""What a family may need beyond the general rules; this base needs nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import mlx.nn as nn

from pipeline.split.blueprint import LayerCall
from pipeline.split.message import Tree

if TYPE_CHECKING:
    from pipeline.split.run import Run
    from pipeline.split.stage import Stage


class Adapter:
    """Hooks at the places where a model's layers may exchange more than what a layer returns.

    One adapter belongs to one stage and keeps no state of a call: that is in the Run it is handed.
    """

    batchable = True  # False: mlx-lm merges the caches, but computes something else with them

    def prepare(self, model: nn.Module) -> None:
        """Bring the model to a form that can be split, before it is probed or made a stage."""

    def opaque(self, model: nn.Module) -> list[nn.Module]:
        """Modules inside of layers that evaluate arrays when called; the probe passes them by."""
        return []

    def shared_caches(
        self, model: nn.Module, calls: Sequence[LayerCall], num_layers: int
    ) -> Mapping[int, frozenset[int]]:
        """The caches that more than one layer uses, with those layers."""
        users: dict[int, set[int]] = {}
        for call in calls:
            for cache in call.caches:
                users.setdefault(cache, set()).add(call.layer)
        return {cache: frozenset(layers) for cache, layers in users.items() if len(layers) > 1}

    def extra_caches(self, model: nn.Module, start: int) -> list[Any]:
        """Fresh caches of a sequence beyond the model's own, for the stage that begins at layer `start`."""
        return []

    def attach(self, stage: Stage) -> None:
        """Hook into the modules of a stage that has just been made."""

    def receive(self, run: Run) -> None:
        """Take up the extras of a message, before the forward."""

    def send(self, run: Run) -> dict[str, Any]:
        """The extras for the next stage."""
        return run.extras

    def before_exit(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        """The keyword arguments with which the last local layer is called."""
        return kwargs

    def encode(self, run: Run, output: Any, kwargs: dict[str, Any]) -> Tree:
        """A tree of arrays, from what the last local layer returned."""
        return output

    def decode(self, run: Run, hidden: Tree) -> Any:
        """What that layer returned, from the tree."""
        return hidden

    def hole(self, run: Run, layer: int, kwargs: dict[str, Any]) -> Any:
        """What a layer of an earlier stage answers."""
        if run.memo is None:
            run.memo = self.decode(run, run.hidden)
        return run.memo
