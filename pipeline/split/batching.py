"""Whether mlx-lm can batch an architecture's caches: tried out, as there is no list to look it up in."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models.cache import make_prompt_cache

from pipeline.split.blueprint import CacheKind

# What mlx-lm raises where a model or a cache is not made for what is asked of it: a missing method,
# shapes that don't go together (ValueError), an array in place of an int (TypeError, ValueError),
# nothing to merge (StopIteration).
REFUSALS = (
    AttributeError,
    IndexError,
    KeyError,
    NotImplementedError,
    RuntimeError,
    StopIteration,
    TypeError,
    ValueError,
)


def can_batch(model: nn.Module) -> bool:
    """Whether sequences of `model` can join, leave and be taken out of a batch.

    That mlx-lm goes through with it does not say that it computes the right thing: with recurrent
    layers it does not for prompts of unequal lengths that are padded and prefilled together, only for
    those that are prefilled one by one and then merged.
    Goes through all of it lazily: the model is not evaluated, only the small offsets that mlx-lm itself reads.
    """
    try:
        _join_and_leave(model)
    except REFUSALS:
        return False
    return True


def can_pad(kinds: Iterable[CacheKind]) -> bool:
    """Whether prompts of unequal lengths can be prefilled together: keys and values of padding are masked,
    but a state that sums up all tokens would have the padding in it.
    """
    return all(_can_pad(kind) for kind in kinds)


def _can_pad(kind: CacheKind) -> bool:
    name, *parts = kind
    if name == "CacheList":
        return can_pad(part for part in parts if isinstance(part, tuple))
    return name in ("KVCache", "RotatingKVCache")


def _join_and_leave(model: nn.Module) -> None:
    resumed = make_prompt_cache(model)
    _step(model, resumed, batch=1, length=2)
    batch = _merge([resumed, make_prompt_cache(model)])
    for cache in batch:  # the second prompt is one token shorter
        cache.prepare(lengths=[3, 2], right_padding=[0, 1])
    _step(model, batch, batch=2, length=3)
    for cache in batch:
        cache.finalize()
    _step(model, batch, batch=2, length=1)
    joining = _merge([make_prompt_cache(model)])
    _step(model, joining, batch=1, length=2)
    for cache, other in zip(batch, joining, strict=True):
        cache.extend(other)
    _step(model, batch, batch=3, length=1)
    leaving = [cache.extract(1) for cache in batch]
    for cache in batch:
        cache.filter(mx.array([0, 2]))
    _step(model, batch, batch=2, length=1)
    _step(model, leaving, batch=1, length=1)
    _step(model, _merge([leaving]), batch=1, length=2)


def _merge(singles: list[list[Any]]) -> list[Any]:
    return [parts[0].merge(list(parts)) for parts in zip(*singles, strict=True)]


def _step(model: nn.Module, caches: list[Any], batch: int, length: int) -> None:
    model(mx.zeros((batch, length), mx.int32), cache=caches)
