"""Copies of a sequence's caches, whole or cut: how a sequence starts from another one's prefix.

An array of MLX is never changed once it is made, so a copy shares its arrays with the original until one of the
two writes; that one then gets arrays of its own.

Plain KV caches can be cut after any token.  A window that has lost its oldest entries, or a state that sums up
all tokens, can only be taken over whole.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from typing import Any

import mlx.core as mx
from mlx_lm.models.cache import CacheList, ChunkedKVCache, KVCache, RotatingKVCache

from pipeline.split.blueprint import CacheKind


def cut_limit(kinds: Iterable[CacheKind]) -> int | None:
    """Tokens up to which a sequence with caches of these kinds can be cut at any point.

    None: at any length; 0: never.
    """
    limits = [limit for kind in kinds if (limit := _limit(kind)) is not None]
    return min(limits, default=None)


def _limit(kind: CacheKind) -> int | None:
    name, *rest = kind
    if name == "CacheList":
        return cut_limit(part for part in rest if isinstance(part, tuple))
    if name == "KVCache":
        return None
    window, chunk = rest[:2]
    if name == "RotatingKVCache" and isinstance(window, int):
        return window - 1
    if name == "ChunkedKVCache" and isinstance(chunk, int):
        return chunk
    return 0


def fork(caches: Sequence[Any], surplus: int) -> list[Any]:
    """Copies of single caches without their last `surplus` tokens; lazy.

    Raises ValueError if a cache can't be cut there.
    """
    copies = copy.deepcopy(list(caches))
    if surplus:
        for cache in copies:
            _cut(cache, surplus)
    return copies


def _cut(cache: Any, surplus: int) -> None:
    if isinstance(cache, CacheList):
        for part in cache.caches:
            _cut(part, surplus)
        return
    if not _holds_all(cache):
        raise ValueError(f"a {type(cache).__name__} can't be cut here")
    if cache.keys is None:  # some layers never fill theirs
        return
    if surplus > cache.offset:
        raise ValueError(f"{cache.offset} entries can't be cut by {surplus}")
    cache.offset -= surplus
    if type(cache) is RotatingKVCache:
        cache._idx = cache.offset
    _fit(cache)


def _holds_all(cache: Any) -> bool:
    """Whether a cache still has the entries of all tokens, in their order."""
    if type(cache) is KVCache:
        return True
    if type(cache) is RotatingKVCache:
        return bool(cache.offset < cache.max_size)
    return type(cache) is ChunkedKVCache and cache.start_position == 0


def _fit(cache: Any) -> None:
    """Leave out the capacity behind the last entry: a copy of few tokens must not keep many in memory."""
    cache.keys = cache.keys[..., : cache.offset, :]
    cache.values = cache.values[..., : cache.offset, :]


def compact(caches: Iterable[Any]) -> None:
    """Free unused capacity, and arrays that are only seen in part, in place; lazy."""
    for cache in caches:
        if isinstance(cache, CacheList):
            compact(cache.caches)
        elif _holds_all(cache) and cache.keys is not None:
            _fit(cache)
            cache.keys = mx.contiguous(cache.keys)
            cache.values = mx.contiguous(cache.values)
