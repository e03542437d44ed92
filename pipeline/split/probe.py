"""Find out how a model is laid out by watching lazy forwards of it; nothing is evaluated.

Three things are recorded: the order of layer calls, the caches that each layer is handed, and which
code reads each parameter (a layer, or the code between two layers).  From that follows what a stage
has to hold, without any rule about the names in a model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx_lm.models.cache import make_prompt_cache

from pipeline.errors import UnsupportedModel
from pipeline.split.adapters import make_adapter
from pipeline.split.batching import REFUSALS, can_batch
from pipeline.split.blueprint import Blueprint, LayerCall, Placement, Shape, fill
from pipeline.split.caches import kind_of
from pipeline.split.modules import (
    architecture_of,
    array_keys,
    join,
    modules_inside,
    parameter_names,
)
from pipeline.split.observe import Output, Read, Watch, observed, passed_through

BATCH, PREFILL = 2, 3
_LEADS: tuple[Shape, ...] = (("B", "L"), (1, "L"), ("L",))  # how an output can begin


def probe(model: nn.Module) -> Blueprint:
    """Find the layout of `model`, a throwaway instance whose arrays are lazy (never evaluated) or loaded.

    Quantize it first if the checkpoint is quantized.  Only this instance is instrumented, and only
    until the call returns or raises; no other thread may use it meanwhile.

    Raises UnsupportedModel if mlx-lm's own code fails on a forward, the layers aren't called in order, or
    a parameter lies where it can't be found.
    """
    name = architecture_of(model)
    if not hasattr(model, "layers"):
        raise UnsupportedModel(
            f"The architecture {name!r} has no list of layers, so it can't be split."
        )
    adapter = make_adapter(model)
    adapter.prepare(model)
    model.eval()
    layers = list(model.layers)
    caches = make_prompt_cache(model)
    watch = Watch({id(cache): i for i, cache in enumerate(caches)})
    opaque = adapter.opaque(model)
    with passed_through(opaque):
        with observed(model, layers, watch):
            try:
                calls, lazy = _forwards(model, caches, watch)
            except REFUSALS as error:
                raise UnsupportedModel(
                    f"mlx-lm can't run this variant of the architecture {name!r}: {error}"
                ) from error
        batchable = adapter.batchable and can_batch(model)
    n = len(layers)
    passes = _count_passes(name, calls, n)
    stubs = _stubs(model, watch)
    shared = adapter.shared_caches(model, calls, n)
    if shared and passes > 1:
        raise UnsupportedModel(
            f"The architecture {name!r} shares caches between layers of two passes."
        )
    return Blueprint(
        architecture=name,
        num_layers=n,
        passes=passes,
        batchable=batchable,
        lazy=lazy and not opaque,
        calls=tuple(calls),
        caches=tuple(kind_of(cache) for cache in caches),
        shared=shared,
        placement=_placement(model, layers, watch, passes, stubs),
        stubs=stubs,
    )


def _forwards(model: nn.Module, caches: list[Any], watch: Watch) -> tuple[list[LayerCall], bool]:
    """One prefill and one decode step; code may read other parameters in one than in the other.

    Returns the calls, and whether no value of the input was looked at.
    """
    orders: list[list[LayerCall]] = []
    unread = True
    for length in (PREFILL, 1):
        watch.calls, watch.length = [], length
        before = mx.array(np.zeros((BATCH, length), np.int32))
        tokens = before + 0
        model(tokens, cache=caches)
        np.array(before, copy=False)[:] = 1  # too late for what has been evaluated
        unread = unread and bool(mx.all(tokens == 1))
        orders.append(watch.calls)
    if orders[0] != orders[1]:
        raise UnsupportedModel(
            f"The architecture {architecture_of(model)!r} calls its layers differently in prefill and decode."
        )
    return orders[0], unread


def _count_passes(name: str, calls: list[LayerCall], num_layers: int) -> int:
    order = [call.layer for call in calls]
    passes = len(order) // num_layers if num_layers else 0
    if not order or order != list(range(num_layers)) * passes:
        raise UnsupportedModel(
            f"The architecture {name!r} doesn't call its {num_layers} layers one after the other."
        )
    return passes


def _stubs(model: nn.Module, watch: Watch) -> dict[str, Shape]:
    """Modules outside of the layers that run between two of them and answer one array of known shape."""
    shapes = {path: _shape(watch.outputs.get(id(m), set())) for path, m in model.named_modules()}
    return {path: shape for path, shape in shapes.items() if shape is not None}


def _shape(outputs: set[Output]) -> Shape | None:
    """The one shape that fits all `outputs`, if there is one."""
    seen = [shape for length, shape in outputs if length == PREFILL and shape is not None]
    for lead in _LEADS if seen else ():
        shape = (*lead, *seen[0][len(lead) :])
        if all(fill(shape, BATCH, length) == found for length, found in outputs):
            return shape
    return None


def _placement(
    model: nn.Module,
    layers: list[nn.Module],
    watch: Watch,
    passes: int,
    stubs: dict[str, Shape],
) -> dict[str, Placement]:
    inside = modules_inside(layers)
    placement: dict[str, Placement] = {}
    for path, module in model.named_modules():
        rule = _Rule(len(layers), passes, path in stubs)
        keys = list(array_keys(module))
        everything = set().union(*(watch.reads.get((id(module), key), ()) for key, _ in keys))
        for key, names in keys:
            if id(module) in inside:
                place = Placement(layers=inside[id(module)])
            else:  # an array that was not read goes with the ones next to it
                place = rule.place(watch.reads.get((id(module), key)) or everything)
            placement.update((join(path, name), place) for name in names)
    for name in parameter_names(model) ^ placement.keys():
        raise UnsupportedModel(
            f"The architecture {architecture_of(model)!r} keeps the parameter {name!r} "
            "between modules, so it can't be split."
        )
    return placement


@dataclass(frozen=True, slots=True)
class _Rule:
    """Where a parameter outside of the layers goes, by the reads of it."""

    num_layers: int
    passes: int
    stubbed: bool  # a stage without the module's parameters has a stub in its place

    def place(self, reads: set[Read]) -> Placement:
        if not reads:
            return Placement(last=True)
        n, final = self.num_layers, self.num_layers * self.passes
        layers: set[int] = set()
        first = last = False
        for read in reads:
            if read.layer is not None:
                layers.add(read.layer)
            elif read.gap == final:
                last = True
            elif not (self.stubbed and read.in_call):  # code that runs on every stage reads it
                return Placement(frozenset(range(n)), first=True, last=True)
            elif read.gap % n == 0:
                first = True
            else:
                layers.add(read.gap % n)
        return Placement(frozenset(layers), first, last)
