"""Gumbel noise that is a pure function of (seed, position, vocabulary size).

Each row of a batch has a key of its own, so its noise depends neither on its batch-mates nor on its
place among them, and a sequence that resumes at position n draws what it would have drawn without
the interruption.

argmax(log p + Gumbel noise) is a sample from p (Gumbel-max, Maddison et al. 2014, "A* Sampling").
A rounding difference in the logits changes the sampled token only if two perturbed scores nearly
tie; under the inverse of the cumulative distribution it would move the boundary of every later
token.
"""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import numpy.typing as npt

Uint64s = npt.NDArray[np.uint64]

_GOLDEN_GAMMA = np.uint64(0x9E3779B97F4A7C15)  # 2**64 / golden ratio, odd
_FINALIZER = (  # (shift, multiplier)
    (np.uint64(30), np.uint64(0xBF58476D1CE4E5B9)),
    (np.uint64(27), np.uint64(0x94D049BB133111EB)),
)
_LAST_SHIFT = np.uint64(31)

_SMALLEST_UNIFORM = 2.0**-33  # half of a step of the 32-bit grid of mx.random.uniform
_SERIES_BELOW = 2.0**-6  # here three terms, and the rounding of 1 - u, are both off by some 1e-6


def mix(values: Uint64s) -> Uint64s:
    """Scramble by the finalizer of SplitMix64 (Steele, Lea, Flood 2014), a bijection of 64 bits."""
    for shift, multiplier in _FINALIZER:
        values = (values ^ (values >> shift)) * multiplier
    scrambled: Uint64s = values ^ (values >> _LAST_SHIFT)
    return scrambled


def row_keys(mixed_seeds: Uint64s, positions: Uint64s) -> mx.array:
    """Give one key of mx.random per row: uint32 [rows, 2].

    `mixed_seeds` are `mix(seeds)`: without that first pass, seeds that differ by a multiple of the
    increment would share a stream with an offset.  `positions` count the tokens emitted so far.
    """
    keys = mix(mixed_seeds + (positions + np.uint64(1)) * _GOLDEN_GAMMA)
    return mx.array(keys.astype("<u8").view("<u4").reshape(-1, 2))


def gumbel(uniform: mx.array) -> mx.array:
    """Turn uniform float32 from [0, 1) into standard Gumbel noise between -2.9 and 22.9.

    With u uniform, -log(1 - u) is exponential, and minus its logarithm is Gumbel.  Large noise comes
    from u close to 0, where float32 is finest; -log(u), coarsest there, would never pick a token of
    probability below 2**-24.  The series stands for log1p, which takes four times as long on the
    CPU backend.
    """
    u = mx.maximum(uniform, _SMALLEST_UNIFORM)
    series = u * (1 + u * (1 / 2 + u * (1 / 3)))
    exponential = mx.where(u < _SERIES_BELOW, series, -mx.log(1 - u))
    return -mx.log(exponential)


class GumbelNoise:
    """Standard Gumbel noise for rows of `size` entries."""

    def __init__(self, size: int) -> None:
        self._uniform = mx.vmap(lambda key: mx.random.uniform(shape=(size,), key=key))

    def __call__(self, keys: mx.array) -> mx.array:
        """Draw float32 [rows, size] from keys, uint32 [rows, 2]; a row depends on its key only."""
        return gumbel(self._uniform(keys))
