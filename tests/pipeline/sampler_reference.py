"""One row of the sampler in plain numpy and float64, for comparison."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from pipeline.request import SamplingParams

Row = npt.NDArray[np.float64]

_WORD = (1 << 64) - 1


def splitmix64(state: int) -> tuple[int, int]:
    """Advance the generator: (next state, output)."""
    state = (state + 0x9E3779B97F4A7C15) & _WORD
    z = state
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _WORD
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _WORD
    return state, z ^ (z >> 31)


def row_noise(seed: int, position: int, size: int) -> Row:
    """Gumbel noise from the generator started at the scrambled seed, `position` steps on."""
    # Output of the generator one increment before the seed is the scrambled seed itself.
    _, start = splitmix64((seed - 0x9E3779B97F4A7C15) & _WORD)
    _, key = splitmix64((start + position * 0x9E3779B97F4A7C15) & _WORD)
    words = mx.array([key & 0xFFFFFFFF, key >> 32], mx.uint32)
    uniform = np.array(mx.random.uniform(shape=(size,), key=words)).astype(np.float64)
    return -np.log(-np.log1p(-np.maximum(uniform, 2.0**-33)))


def edited(
    logits: Row, params: SamplingParams, prompt: Sequence[int], emitted: Sequence[int]
) -> Row:
    out = logits.copy()
    for token in {*prompt, *emitted}:
        if out[token] > 0:
            out[token] /= params.repetition_penalty
        else:
            out[token] *= params.repetition_penalty
    for token, count in Counter(emitted).items():
        out[token] -= params.presence_penalty
        out[token] -= params.frequency_penalty * count
    for token, bias in params.logit_bias.items():
        out[token] += bias
    if len(emitted) < params.min_tokens:
        for token in params.end_tokens:
            out[token] = -math.inf
    return out


def kept(logits: Row, params: SamplingParams, slack: float = 0.0) -> npt.NDArray[np.bool_]:
    """Which tokens pass top_k, top_p and min_p; `slack` moves the limits of the latter two."""
    order = sorted(range(len(logits)), key=lambda token: -logits[token])
    if params.top_k:
        order = order[: params.top_k]
    weights = {token: math.exp(logits[token] - logits[order[0]]) for token in order}
    if params.top_p < 1:
        wanted = params.top_p * sum(weights.values())
        nucleus: list[int] = []
        mass = 0.0
        for token in order:
            if nucleus and mass >= wanted + slack:
                break
            nucleus.append(token)
            mass += weights[token]
        order = nucleus
    limit = params.min_p * (1 + slack)
    mask = np.zeros(len(logits), np.bool_)
    mask[[token for token in order if weights[token] >= limit]] = True
    mask[order[0]] = True
    return mask


def scores(
    logits: Row,
    params: SamplingParams,
    prompt: Sequence[int],
    emitted: Sequence[int],
    slack: float = 0.0,
) -> Row:
    """Perturbed scores, whose largest is the token; -inf where filtered out."""
    out = edited(logits, params, prompt, emitted)
    if params.temperature == 0:
        return out
    out = out / params.temperature
    noise = row_noise(params.seed, len(emitted), len(logits))
    return np.where(kept(out, params, slack), out + noise, -math.inf)
