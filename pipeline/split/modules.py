"""Small tools for taking a model of mlx-lm apart without changing its classes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten


def architecture_of(model: nn.Module) -> str:
    """The architecture's name: that of the module of mlx-lm that defines the model."""
    return type(model).__module__.rpartition(".")[2]


def override(module: nn.Module, **methods: Callable[..., Any]) -> type[nn.Module]:
    """Give this one object other methods, by a subclass of its own; returns the class it had."""
    base = type(module)
    body = {"__module__": base.__module__, "__qualname__": base.__qualname__, **methods}
    module.__class__ = type(base.__name__, (base,), body)
    return base


def array_keys(module: nn.Module) -> Iterator[tuple[str, tuple[str, ...]]]:
    """The keys of `module` that hold parameters, each with the parameters' names relative to the module.

    A key holds one array, or a list or dict of nothing but arrays.  Keys with a leading underscore are no
    parameters for MLX.
    """
    for key, value in module.items():
        if key.startswith("_") or isinstance(value, nn.Module):
            continue
        if isinstance(value, mx.array):
            yield key, (key,)
        elif isinstance(value, (dict, list, tuple)):
            leaves = tree_flatten(value, is_leaf=lambda x: isinstance(x, nn.Module))
            if leaves and all(isinstance(leaf, mx.array) for _, leaf in leaves):
                yield key, tuple(f"{key}.{name}" for name, _ in leaves)


def join(path: str, name: str) -> str:
    """The full name of `name` inside the module at `path`."""
    return f"{path}.{name}" if path else name


def parameter_names(model: nn.Module) -> frozenset[str]:
    """Names of all the parameters that `model` holds, as in a checkpoint."""
    return frozenset(name for name, _ in tree_flatten(model.parameters()))


def modules_inside(layers: list[nn.Module]) -> dict[int, frozenset[int]]:
    """`{id(module): indices of the layers it is part of}`."""
    found: dict[int, set[int]] = {}
    for i, layer in enumerate(layers):
        for _, module in layer.named_modules():
            found.setdefault(id(module), set()).add(i)
    return {key: frozenset(value) for key, value in found.items()}
