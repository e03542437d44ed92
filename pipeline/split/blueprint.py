"""What is known of an architecture once it has been probed: plain data, without arrays."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

CacheKind: TypeAlias = tuple[object, ...]
"""Caches of one kind are interchangeable for masks and offsets."""

Shape: TypeAlias = tuple[int | str, ...]
"""A shape of one step: "B" stands for the number of sequences, "L" for that of new tokens in each."""


def fill(shape: Shape, batch: int, length: int) -> tuple[int, ...]:
    """`shape` for `batch` sequences of `length` new tokens."""
    sizes = {"B": batch, "L": length}
    return tuple(sizes[n] if isinstance(n, str) else n for n in shape)


@dataclass(frozen=True, slots=True)
class Placement:
    """Which stages hold a parameter: those with any of `layers`, and the first or the last as marked."""

    layers: frozenset[int] = frozenset()
    first: bool = False
    last: bool = False

    def within(self, start: int, end: int, num_layers: int) -> bool:
        """Whether the stage of layers [start, end) holds the parameter."""
        if (self.first and start == 0) or (self.last and end == num_layers):
            return True
        return any(start <= layer < end for layer in self.layers)


@dataclass(frozen=True, slots=True)
class LayerCall:
    """One call of a layer in a forward: which layer, and the indices of the caches that it was handed."""

    layer: int
    caches: tuple[int, ...]


@dataclass(frozen=True)
class Blueprint:
    """How a model is laid out over its layers.

    `passes`: how often a forward goes through all the layers (1, but 2 for looped models).
    `batchable`: whether mlx-lm can merge, extend, filter and extract the caches of this architecture,
    once each prompt has been prefilled by itself.  (Prefilled together with padding, recurrent layers of
    mlx-lm take the padding, or what was cut off by a chunk's end, into their state.)
    `lazy`: whether a forward only builds a graph, so that what it computes with may come later.
    `calls`: the layer calls of one forward, `passes * num_layers` of them.
    `caches`: the kind of each cache of the whole model.
    `shared`: caches that more than one layer uses, with those layers.
    `placement`: where each parameter is needed, by its name in a (sanitized, quantized) checkpoint.
    `stubs`: modules between the layers, with the shape of their output: a stage without their parameters
    answers zeros in their place.
    """

    architecture: str
    num_layers: int
    passes: int
    batchable: bool
    lazy: bool
    calls: tuple[LayerCall, ...]
    caches: tuple[CacheKind, ...]
    shared: Mapping[int, frozenset[int]]
    placement: Mapping[str, Placement]
    stubs: Mapping[str, Shape]

    def parameters(self, start: int, end: int) -> frozenset[str]:
        """Names of exactly the parameters that the stage of layers [start, end) holds."""
        n = self.num_layers
        return frozenset(k for k, place in self.placement.items() if place.within(start, end, n))

    def layer_of(self, name: str) -> int | None:
        """The one layer that the parameter moves with, None if there is no such layer.

        Raises KeyError if the model has no parameter of this name.
        """
        place = self.placement[name]
        if place.first or place.last or len(place.layers) != 1:
            return None
        return next(iter(place.layers))

    @cached_property
    def first_only(self) -> frozenset[str]:
        """Parameters of the first stage that go with no layer, such as an untied embedding."""
        return self._ends(first=True, last=False)

    @cached_property
    def last_only(self) -> frozenset[str]:
        """Parameters of the last stage that go with no layer: final norm, untied head, and any never used."""
        return self._ends(first=False, last=True)

    @cached_property
    def both_ends(self) -> frozenset[str]:
        """Parameters that the first and the last stage both hold, such as a tied embedding."""
        return self._ends(first=True, last=True)

    def _ends(self, *, first: bool, last: bool) -> frozenset[str]:
        wanted = Placement(first=first, last=last)
        return frozenset(name for name, place in self.placement.items() if place == wanted)

    @cached_property
    def owners(self) -> tuple[int, ...]:
        """For each cache, the layer that is the first to use it."""
        first: dict[int, int] = {}
        for call in self.calls:
            for cache in call.caches:
                first.setdefault(cache, call.layer)
        return tuple(first.get(cache, 0) for cache in range(len(self.caches)))

    def crossing(self, boundary: int) -> tuple[int, ...]:
        """Caches owned before layer `boundary` that a layer from there on uses: their K/V cross in messages."""
        return tuple(
            cache
            for cache, users in sorted(self.shared.items())
            if self.owners[cache] < boundary and any(user >= boundary for user in users)
        )
