"""Find out how a model is laid out by watching lazy forwards of it; nothing is evaluated.

Three things are recorded: the order of layer calls, the caches that each layer is handed, and which
code reads each parameter (a layer, or the code between two layers).  From that follows what a stage
has to hold, without any rule about the names in a model.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import mlx.core as mx
import mlx.nn as nn
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
    override,
    parameter_names,
)

BATCH, PREFILL = 2, 3
_LEADS: tuple[Shape, ...] = (("B", "L"), (1, "L"), ("L",))  # how an output can begin


@dataclass(frozen=True, slots=True)
class _Read:
    """A parameter was read: inside `layer`, or else by the code before layer call number `gap`."""

    layer: int | None
    gap: int
    in_call: bool  # by the module's own __call__, so that a stub of it spares the parameter


_Output: TypeAlias = tuple[int, tuple[int, ...] | None]  # L of the step, shape if it is one array


@dataclass
class _Watch:
    """What the observed model did so far in the current forward, and what was noted over all of them."""

    cache_index: dict[int, int]
    length: int = 0  # L of the current forward
    layer: int | None = None  # the one that is running
    calls: list[LayerCall] = field(default_factory=list)
    reads: dict[tuple[int, str], set[_Read]] = field(default_factory=dict)
    active: list[int] = field(default_factory=list)  # ids of outer modules being called
    outputs: dict[int, set[_Output]] = field(default_factory=dict)

    def note(self, module: nn.Module, key: str) -> None:
        read = _Read(self.layer, len(self.calls), id(module) in self.active)
        self.reads.setdefault((id(module), key), set()).add(read)


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
    watch = _Watch({id(cache): i for i, cache in enumerate(caches)})
    with _passed_through(adapter.opaque(model)):
        with _observed(model, layers, watch):
            try:
                calls = _forwards(model, caches, watch)
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
        calls=tuple(calls),
        caches=tuple(kind_of(cache) for cache in caches),
        shared=shared,
        placement=_placement(model, layers, watch, passes, stubs),
        stubs=stubs,
    )


def _forwards(model: nn.Module, caches: list[Any], watch: _Watch) -> list[LayerCall]:
    """One prefill and one decode step; code may read other parameters in one than in the other."""
    orders: list[list[LayerCall]] = []
    for length in (PREFILL, 1):
        watch.calls, watch.length = [], length
        model(mx.zeros((BATCH, length), mx.int32), cache=caches)
        orders.append(watch.calls)
    if orders[0] != orders[1]:
        raise UnsupportedModel(
            f"The architecture {architecture_of(model)!r} calls its layers differently in prefill and decode."
        )
    return orders[0]


def _count_passes(name: str, calls: list[LayerCall], num_layers: int) -> int:
    order = [call.layer for call in calls]
    passes = len(order) // num_layers if num_layers else 0
    if not order or order != list(range(num_layers)) * passes:
        raise UnsupportedModel(
            f"The architecture {name!r} doesn't call its {num_layers} layers one after the other."
        )
    return passes


# ---- observation


@contextmanager
def _passed_through(modules: list[nn.Module]) -> Iterator[None]:
    """Within this context `modules` answer what they are called with."""
    classes = [(module, override(module, __call__=lambda _, x: x)) for module in modules]
    try:
        yield
    finally:
        for module, original in classes:
            module.__class__ = original


@contextmanager
def _observed(model: nn.Module, layers: list[nn.Module], watch: _Watch) -> Iterator[None]:
    """Within this context `watch` sees layer calls, and reads of arrays outside of the layers."""
    inside = modules_inside(layers)
    outer = {id(m): m for _, m in model.named_modules() if id(m) not in inside}
    classes: list[tuple[nn.Module, type[nn.Module]]] = []
    try:
        classes.extend((layer, _observe_layer(i, layer, watch)) for i, layer in enumerate(layers))
        classes.extend((module, _observe_outer(module, watch)) for module in outer.values())
        yield
    finally:
        for module, original in reversed(classes):
            module.__class__ = original


def _observe_layer(index: int, layer: nn.Module, watch: _Watch) -> type[nn.Module]:
    base = type(layer)

    def call(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        handed = (watch.cache_index.get(id(x)) for x in (*args, *kwargs.values()))
        watch.calls.append(LayerCall(index, tuple(i for i in handed if i is not None)))
        watch.layer = index
        try:
            return base.__call__(self, *args, **kwargs)
        finally:
            watch.layer = None

    return override(layer, __call__=call)


def _observe_outer(module: nn.Module, watch: _Watch) -> type[nn.Module]:
    base = type(module)
    keys = frozenset(key for key, _ in array_keys(module))

    def get(self: nn.Module, key: str, default: Any = None) -> Any:
        if key in keys:
            watch.note(self, key)
        return base.get(self, key, default)

    def getitem(self: nn.Module, key: str) -> Any:
        if key in keys:
            watch.note(self, key)
        return base.__getitem__(self, key)

    def call(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        gap = len(watch.calls)
        watch.active.append(id(self))
        try:
            output = base.__call__(self, *args, **kwargs)
        finally:
            watch.active.pop()
        alone = gap == len(watch.calls) and watch.layer is None and isinstance(output, mx.array)
        shape = tuple(output.shape) if alone else None
        watch.outputs.setdefault(id(self), set()).add((watch.length, shape))
        return output

    return override(module, get=get, __getitem__=getitem, __call__=call)


# ---- conclusions


def _stubs(model: nn.Module, watch: _Watch) -> dict[str, Shape]:
    """Modules outside of the layers that run between two of them and answer one array of known shape."""
    shapes = {path: _shape(watch.outputs.get(id(m), set())) for path, m in model.named_modules()}
    return {path: shape for path, shape in shapes.items() if shape is not None}


def _shape(outputs: set[_Output]) -> Shape | None:
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
    watch: _Watch,
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

    def place(self, reads: set[_Read]) -> Placement:
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
