"""The caches of one stage, and the full-length list of caches that the model's code expects.

The stage's own list is, in this order:
  own      caches of local layers
  mirrors  copies of caches that earlier stages own and local layers read
  extras   what an adapter adds
  shadows  one-wide stand-ins, advanced without content, for kinds of which no local cache exists

The model's code gets a list of its usual length.  In it a cache of another stage is a local one of
the same kind, or else a shadow: the code reads only masks and offsets from it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten
from mlx_lm.models.cache import ArraysCache, CacheList

from pipeline.split.blueprint import Blueprint, CacheKind


def kind_of(cache: Any) -> CacheKind:
    """What has to be equal for two caches to give the same masks and offsets."""
    if isinstance(cache, CacheList):
        return ("CacheList", *(kind_of(part) for part in cache.caches))
    sizes = tuple(getattr(cache, name, None) for name in ("max_size", "chunk_size", "window_size"))
    return (type(cache).__name__, *sizes, len(cache.cache) if isinstance(cache, ArraysCache) else 0)


@dataclass(frozen=True, slots=True)
class CachePlan:
    """Where the caches of a stage come from (indices into the model's list) and go to."""

    own: tuple[int, ...]
    mirrors: tuple[int, ...]
    num_extras: int
    shadows: tuple[int, ...]
    slots: tuple[
        tuple[int, ...], ...
    ]  # per pass: for each cache of the model, a position in the stage's list

    @property
    def kept(self) -> tuple[int, ...]:
        """The model's caches that the stage keeps with content."""
        return self.own + self.mirrors

    @property
    def first_extra(self) -> int:
        """Position of the adapter's first cache in the stage's list."""
        return len(self.own) + len(self.mirrors)

    @property
    def first_shadow(self) -> int:
        """Position of the first shadow in the stage's list."""
        return self.first_extra + self.num_extras

    def select(self, full: list[Any], extras: list[Any]) -> list[Any]:
        """The stage's list, from a fresh list of the whole model's caches."""
        return [full[c] for c in self.kept] + extras + [full[c] for c in self.shadows]


def plan_caches(blueprint: Blueprint, start: int, end: int, num_extras: int) -> CachePlan:
    """Lay out the caches of the stage of layers [start, end)."""
    own = tuple(c for c, owner in enumerate(blueprint.owners) if start <= owner < end)
    mirrors = tuple(
        cache
        for cache in blueprint.crossing(start)
        if any(start <= user < end for user in blueprint.shared[cache])
    )
    layout = _Layout(blueprint, own + mirrors, num_extras)
    slots = tuple(layout.pass_slots(p, start, end) for p in range(blueprint.passes))
    return CachePlan(own, mirrors, num_extras, tuple(layout.shadows), slots)


class _Layout:
    def __init__(self, blueprint: Blueprint, kept: tuple[int, ...], num_extras: int) -> None:
        self.blueprint = blueprint
        self.position = {cache: i for i, cache in enumerate(kept)}
        self.first_shadow = len(kept) + num_extras
        self.shadows: list[int] = []

    def pass_slots(self, pass_index: int, start: int, end: int) -> tuple[int, ...]:
        """Only caches that this pass advances may stand in for others: those of another pass are ahead."""
        used = self._used(pass_index, start, end)
        by_kind: dict[CacheKind, int] = {}
        for cache, position in self.position.items():
            if cache in used:
                by_kind.setdefault(self.blueprint.caches[cache], position)
        return tuple(self._slot(c, used, by_kind) for c in range(len(self.blueprint.caches)))

    def _used(self, pass_index: int, start: int, end: int) -> frozenset[int]:
        if self.blueprint.passes == 1:
            return frozenset(self.position)
        n = self.blueprint.num_layers
        calls = self.blueprint.calls[pass_index * n : (pass_index + 1) * n]
        return frozenset(c for call in calls if start <= call.layer < end for c in call.caches)

    def _slot(self, cache: int, used: frozenset[int], by_kind: dict[CacheKind, int]) -> int:
        if cache in used:
            return self.position[cache]
        kind = self.blueprint.caches[cache]
        if kind not in by_kind:
            if cache in self.position:
                return self.position[cache]
            by_kind[kind] = self.first_shadow + len(self.shadows)
            self.shadows.append(cache)
        return by_kind[kind]


def advance(cache: Any, batch: int, length: int) -> None:
    """Move a shadow on by `length` tokens of `batch` sequences, as a layer would, but one wide."""
    if isinstance(cache, CacheList):
        for part in cache.caches:
            advance(part, batch, length)
    elif isinstance(cache, ArraysCache):
        cache.cache = [mx.zeros((batch, 1)) if part is None else part for part in cache.cache]
        cache.advance(length)
    elif hasattr(cache, "update_and_fetch"):
        empty = mx.zeros((batch, 1, length, 1))
        cache.update_and_fetch(empty, empty)


def arrays_of(caches: list[Any]) -> list[mx.array]:
    """All arrays that the caches hold."""
    leaves = tree_flatten([cache.state for cache in caches])
    return [leaf for _, leaf in leaves if isinstance(leaf, mx.array)]


class RecordingCache:
    """Stands for a cache during one call, and notes the K/V it is given, for later stages that share it."""

    def __init__(self, cache: Any) -> None:
        object.__setattr__(self, "_cache", cache)
        object.__setattr__(self, "recorded", None)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._cache, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._cache, name, value)

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> Any:
        """As the cache's own; keys and values [B, heads, L, head_dim]."""
        object.__setattr__(self, "recorded", (keys, values))
        return self._cache.update_and_fetch(keys, values)
