"""Randomness: keys, noise, and the distribution that comes of them.

The seeds are fixed, so that the bounds on frequencies hold always or never.
"""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest

from pipeline.request import SamplingParams
from pipeline.sampler import Sampler
from pipeline.sampling.noise import GumbelNoise, gumbel, mix, row_keys
from tests.pipeline import sampler_reference as reference

DRAWS = 20_000
SIGMAS = 4.5


def uint64s(*values: int) -> np.ndarray:
    return np.array(values, np.uint64)


def test_mix_gives_the_published_outputs_of_splitmix64():
    gamma, seed = 0x9E3779B97F4A7C15, 1234567
    states = uint64s(*((seed + step * gamma) % 2**64 for step in (1, 2, 3)))
    outputs = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    assert mix(states).tolist() == outputs


def test_a_key_belongs_to_one_seed_and_position():
    seeds, positions = np.meshgrid(np.arange(50), np.arange(50))
    keys = np.array(row_keys(mix(uint64s(*seeds.flat)), uint64s(*positions.flat)))
    assert len({tuple(key) for key in keys.tolist()}) == 2500


@pytest.mark.parametrize("size", [1, 2, 7, 49, 4096])
def test_noise_of_a_row_is_the_same_in_any_batch(size):
    noise = GumbelNoise(size)
    keys = row_keys(mix(uint64s(3, 1 << 62, 5, 3)), uint64s(0, 9, 2, 0))
    together = np.array(noise(keys))
    alone = np.concatenate([np.array(noise(keys[row][None])) for row in range(4)])
    assert (together == alone).all()
    assert (together[0] == together[3]).all()
    assert np.abs(together[1] - reference.row_noise(1 << 62, 9, size)).max() < 1e-5


def test_noise_is_finite_and_accurate_over_the_whole_range_of_uniform():
    u = np.concatenate([[0.0, 1 - 2.0**-24], np.geomspace(2.0**-33, 0.999, 999)])
    u = u.astype(np.float32)
    exact = -np.log(-np.log1p(-np.maximum(u.astype(np.float64), 2.0**-33)))
    assert np.abs(np.array(gumbel(mx.array(u))) - exact).max() < 5e-6


def frequencies(params: list[SamplingParams], logits: list[float], emitted: list[int]):
    sampler = Sampler(len(logits))
    for sequence, each in enumerate(params):
        sampler.add(sequence, each, [0], emitted)
    batch = mx.broadcast_to(mx.array(logits), (len(params), len(logits)))
    chosen, _ = sampler(batch, range(len(params))).record()
    return np.bincount(chosen, minlength=len(logits)) / len(params), chosen


def bound(probability: np.ndarray) -> np.ndarray:
    return SIGMAS * np.sqrt(probability * (1 - probability) / DRAWS)


PROBABILITIES = np.array([0.5, 0.25, 0.15, 0.0995, 0.0005])
LOGITS = np.log(PROBABILITIES).tolist()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, PROBABILITIES),
        ({"temperature": 2.0}, PROBABILITIES**0.5 / (PROBABILITIES**0.5).sum()),
        ({"top_k": 2}, np.array([2 / 3, 1 / 3, 0, 0, 0])),
        ({"top_p": 0.8}, np.array([0.5, 0.25, 0.15, 0, 0]) / 0.9),
        ({"min_p": 0.4}, np.array([2 / 3, 1 / 3, 0, 0, 0])),
    ],
)
def test_frequencies_over_seeds_are_the_probabilities(options, expected):
    params = [SamplingParams(seed=seed, **options) for seed in range(DRAWS)]
    observed, _ = frequencies(params, LOGITS, [])
    assert (np.abs(observed - expected) <= bound(expected)).all()


def test_successive_positions_of_a_seed_are_independent():
    params = [SamplingParams(seed=seed) for seed in range(DRAWS)]
    _, first = frequencies(params, LOGITS, [])
    _, second = frequencies(params, LOGITS, [0])
    pairs = np.array(first) * 5 + np.array(second)
    observed = np.bincount(pairs, minlength=25) / DRAWS
    expected = np.outer(PROBABILITIES, PROBABILITIES).ravel()
    likely = expected * DRAWS > 10
    assert (np.abs(observed - expected)[likely] <= bound(expected)[likely]).all()
