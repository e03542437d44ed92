"""What a model costs, layer by layer, read off a lazy instance of it: shapes and dtypes, no values."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import mlx.core as mx
from mlx_lm.models.cache import ArraysCache, CacheList

from pipeline.plan import ModelCosts, SharedParameters
from pipeline.split import Blueprint

_NUM_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
_ACTIVE_EXPERTS = ("num_experts_per_tok", "num_experts_per_token", "moe_top_k", "top_k_experts")


def measure_costs(
    blueprint: Blueprint,
    parameters: Mapping[str, mx.array],
    config: Mapping[str, Any],
    kv_bytes_per_token: tuple[int, ...] | None,
) -> ModelCosts:
    """Bytes of `parameters` by where `blueprint` places them, and bytes that one decode step reads."""
    n = blueprint.num_layers
    experts = _Experts(config)
    layer_bytes, layer_work = [0] * n, [0.0] * n
    shared: dict[tuple[frozenset[int], bool, bool], int] = defaultdict(int)
    last_work = 0.0
    for name, array in parameters.items():
        place = blueprint.placement[name]
        work = array.nbytes * experts.active_share(array)
        for layer in place.layers:
            layer_work[layer] += work
        last_work += work if place.last else 0.0
        own = blueprint.layer_of(name)
        if own is not None:
            layer_bytes[own] += array.nbytes
        else:
            shared[place.layers, place.first, place.last] += array.nbytes
    nowhere: frozenset[int] = frozenset()
    return ModelCosts(
        layer_bytes=tuple(layer_bytes),
        first_bytes=shared.pop((nowhere, True, False), 0),
        last_bytes=shared.pop((nowhere, False, True), 0),
        shared=tuple(SharedParameters(*place, size) for place, size in shared.items()),
        layer_work=tuple(layer_work),
        last_work=last_work,
        kv_bytes_per_token=kv_bytes_per_token,
    )


class _Experts:
    """How much of a stack of experts one token touches."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        text = config.get("text_config")
        both = {**config, **text} if isinstance(text, Mapping) else dict(config)
        self._total = _first_int(both, _NUM_EXPERTS)
        self._active = _first_int(both, _ACTIVE_EXPERTS)

    def active_share(self, array: mx.array) -> float:
        """Experts are stacked as [experts, out, in]; anything else is read whole."""
        if not self._total or not self._active or array.ndim < 3 or array.shape[0] != self._total:
            return 1.0
        return min(1.0, self._active / self._total)


def _first_int(config: Mapping[str, Any], keys: tuple[str, ...]) -> int | None:
    return next((config[key] for key in keys if isinstance(config.get(key), int)), None)


def kv_bytes_per_token(blueprint: Blueprint, caches: list[Any]) -> tuple[int, ...] | None:
    """Bytes that one more token takes in each layer, from `caches` after a lazy forward.

    Sliding windows count as if they grew for ever, states of fixed size as nothing.  None when a
    cache is of a kind whose growth is unknown.
    """
    layers = [0] * blueprint.num_layers
    for cache, owner in zip(caches, blueprint.owners, strict=True):
        growth = _growth(cache)
        if growth is None:
            return None
        layers[owner] += growth
    return tuple(layers)


def _growth(cache: Any) -> int | None:
    if isinstance(cache, CacheList):
        parts = [_growth(part) for part in cache.caches]
        return None if None in parts else sum(part for part in parts if part is not None)
    if isinstance(cache, ArraysCache):
        return 0
    if not hasattr(cache, "keys") or not hasattr(cache, "values"):
        return None
    total = 0
    for array in (cache.keys, cache.values):  # [B, heads, tokens, dims]; None if no layer fills it
        if array is None:
            continue
        if not isinstance(array, mx.array) or array.ndim != 4:
            return None
        total += array.shape[1] * array.shape[3] * array.itemsize
    return total
