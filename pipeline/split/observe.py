"""Watch a model from inside, by subclasses of single objects that are gone again afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import mlx.core as mx
import mlx.nn as nn

from pipeline.split.blueprint import LayerCall
from pipeline.split.modules import array_keys, modules_inside, override


@dataclass(frozen=True, slots=True)
class Read:
    """A parameter was read: inside `layer`, or else by the code before layer call number `gap`."""

    layer: int | None
    gap: int
    in_call: bool  # by the module's own __call__, so that a stub of it spares the parameter


Output: TypeAlias = tuple[int, tuple[int, ...] | None]  # L of the step, shape if it is one array


@dataclass
class Watch:
    """What the observed model did so far in the current forward, and what was noted over all of them."""

    cache_index: dict[int, int]
    length: int = 0  # L of the current forward
    layer: int | None = None  # the one that is running
    calls: list[LayerCall] = field(default_factory=list)
    reads: dict[tuple[int, str], set[Read]] = field(default_factory=dict)
    active: list[int] = field(default_factory=list)  # ids of outer modules being called
    outputs: dict[int, set[Output]] = field(default_factory=dict)

    def note(self, module: nn.Module, key: str) -> None:
        read = Read(self.layer, len(self.calls), id(module) in self.active)
        self.reads.setdefault((id(module), key), set()).add(read)


@contextmanager
def passed_through(modules: list[nn.Module]) -> Iterator[None]:
    """Within this context `modules` answer what they are called with."""
    classes = [(module, override(module, __call__=lambda _, x: x)) for module in modules]
    try:
        yield
    finally:
        for module, original in classes:
            module.__class__ = original


@contextmanager
def observed(model: nn.Module, layers: list[nn.Module], watch: Watch) -> Iterator[None]:
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


def _observe_layer(index: int, layer: nn.Module, watch: Watch) -> type[nn.Module]:
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


def _observe_outer(module: nn.Module, watch: Watch) -> type[nn.Module]:
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
