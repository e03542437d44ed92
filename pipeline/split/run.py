"""Everything that lives only as long as one call of a stage."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import mlx.core as mx
from mlx.utils import tree_flatten

from pipeline.errors import FrameError
from pipeline.split.caches import RecordingCache
from pipeline.split.message import Message, Tree

if TYPE_CHECKING:
    from pipeline.split.stage import Stage


class Run:
    """One step on one stage.

    `hidden`, `extras`: what came from the previous stage (None and empty where token ids came).
    `incoming`: shared K/V that came along, by the layer that made them.
    `passed_on`: all shared K/V that came along, by cache.
    `fetched`: what a mirror answered to its K/V, and its offset before, by the layer that made them.
    `memo`: what the holes answer, once decoded.
    `model_caches`: the full-length list for the model; `caches`: the stage's own list.
    `recorders`: those of `model_caches` whose new K/V later stages need.
    """

    __slots__ = (
        "caches", "dtype", "extras", "fetched", "first_visit", "hidden", "incoming", "last_visit", "memo",
        "model_caches", "output", "pass_index", "passed_on", "recorders", "stage", "tokens", "visit",
    )  # fmt: skip

    def __init__(
        self, stage: Stage, inputs: mx.array | Message, caches: list[Any], pass_index: int
    ) -> None:
        n = stage.blueprint.num_layers
        self.stage, self.caches, self.pass_index = stage, caches, pass_index
        self.visit = 0
        self.first_visit = pass_index * n + stage.start
        self.last_visit = pass_index * n + stage.end - 1
        self.memo: Any = None
        self.output: Tree = None
        self.fetched: dict[int, tuple[Any, Any]] = {}
        self._receive(inputs)
        self.model_caches = [caches[i] for i in stage.caches.slots[pass_index]]
        self.recorders: dict[int, RecordingCache] = {}
        for cache in stage.outgoing:
            if cache not in self.passed_on:
                self.recorders[cache] = RecordingCache(self.model_caches[cache])
                self.model_caches[cache] = self.recorders[cache]

    def _receive(self, inputs: mx.array | Message) -> None:
        self.hidden: Tree = None
        self.incoming: dict[int, tuple[int, Tree]] = {}
        self.passed_on: dict[int, Tree] = {}
        self.extras: dict[str, Any] = {}
        if isinstance(inputs, mx.array):
            self.tokens, self.dtype = inputs, mx.float32
            if self.first_visit > 0:
                raise FrameError("Only the first stage takes token ids.")
            return
        self.tokens, tree = inputs.tokens, inputs.tree
        if not isinstance(tree, dict) or "hidden" not in tree or self.first_visit == 0:
            raise FrameError("A message holds no hidden state for this stage.")
        self.hidden = hidden = tree["hidden"]
        self.dtype = (
            hidden.dtype if isinstance(hidden, mx.array) else tree_flatten(hidden)[0][1].dtype
        )
        self.extras.update(tree.get("extras", {}))
        self._receive_kv(tree.get("kv", ()))

    def _receive_kv(self, kv: tuple[Tree, ...]) -> None:
        expected = self.stage.blueprint.crossing(self.stage.start) if kv else ()
        if len(kv) != len(expected):
            raise FrameError(f"A message holds {len(kv)} shared caches, not {len(expected)}.")
        owners = self.stage.blueprint.owners
        for cache, part in zip(expected, kv, strict=True):
            self.passed_on[cache] = part
            if cache in self.stage.caches.mirrors:
                self.incoming[owners[cache]] = (cache, part)

    def fetch(self, layer: int) -> None:
        """At the hole of `layer`: put its K/V in the mirror, when upstream's code would have put them."""
        cache, (keys, values) = self.incoming[layer]
        mirror = self.caches[self.stage.caches.kept.index(cache)]
        offset = mirror.offset
        if isinstance(offset, mx.array):
            offset = mx.array(offset)  # some caches advance it in place
        self.fetched[layer] = (mirror.update_and_fetch(keys, values), offset)

    def outgoing_tree(self, extras: dict[str, Any]) -> Tree:
        """The tree for the next stage; entries without content are left out."""
        tree: dict[str, Tree] = {"hidden": self.output}
        if extras:
            tree["extras"] = extras
        if self.stage.outgoing:
            tree["kv"] = tuple(
                self.recorders[cache].recorded if cache in self.recorders else self.passed_on[cache]
                for cache in self.stage.outgoing
            )
        return tree
