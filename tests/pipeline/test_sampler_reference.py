"""The vectorised sampler against a row-by-row reference, for generated parameters and logits."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.request import SamplingParams
from pipeline.sampler import Sampler
from pipeline.sampling.filters import Filters
from tests.pipeline import sampler_reference as reference

VOCAB = 23
tokens = st.integers(0, VOCAB - 1)

params = st.builds(
    SamplingParams,
    seed=st.integers(0, (1 << 63) - 1),
    temperature=st.sampled_from([0.0, 0.3, 1.0, 1.7]),
    top_p=st.sampled_from([0.0, 0.3, 0.8, 0.95, 1.0]),
    top_k=st.sampled_from([0, 0, 1, 4, 22, 23, 500]),
    min_p=st.sampled_from([0.0, 0.0, 0.05, 0.5, 1.0]),
    repetition_penalty=st.sampled_from([1.0, 1.0, 0.7, 1.3]),
    presence_penalty=st.sampled_from([0.0, 0.0, -0.8, 1.1]),
    frequency_penalty=st.sampled_from([0.0, 0.0, -0.4, 0.9]),
    logit_bias=st.dictionaries(tokens, st.floats(-5, 5, width=32), max_size=3),
    min_tokens=st.integers(0, 4),
    end_tokens=st.lists(tokens, max_size=3).map(tuple),
    logprobs=st.sampled_from([-1, -1, 0, 1, 5, 40]),
)


@st.composite
def rows(draw):
    """Parameters, prompt and output so far of one sequence."""
    some = st.lists(tokens, max_size=6)
    return draw(params), draw(some), draw(some)


def normal_logits(seed: int, size: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 3, (size, VOCAB)).astype(np.float32)


@settings(max_examples=300, deadline=None)
@given(batch=st.lists(rows(), min_size=1, max_size=6), logits_seed=st.integers(0, 1 << 32))
def test_every_row_gets_the_token_of_the_reference(batch, logits_seed):
    logits = normal_logits(logits_seed, len(batch))
    sampler = Sampler(VOCAB)
    for sequence, row in enumerate(batch):
        sampler.add(sequence, *row)

    chosen, logprobs = sampler(mx.array(logits), range(len(batch))).record()

    for row, (row_params, prompt, emitted) in enumerate(batch):
        x = logits[row].astype(np.float64)
        # Rounding decides a near tie, and a token at the limit of a filter: accept either side.
        both = [reference.scores(x, row_params, prompt, emitted, s) for s in (-1e-5, 1e-5)]
        assert any(s[chosen[row]] >= s.max() - 1e-4 for s in both)
        check_logprobs(x, row_params.logprobs, chosen[row], logprobs[row])


def check_logprobs(logits, wanted, token, record):
    if wanted < 0:
        assert record is None
        return
    expected = logits - logits.max()
    expected -= np.log(np.exp(expected).sum())
    assert record.chosen == pytest.approx(expected[token], abs=1e-5)
    best = sorted(range(VOCAB), key=lambda token: -expected[token])[:wanted]
    assert [token for token, _ in record.top] == best
    assert [value for _, value in record.top] == pytest.approx(expected[best], abs=1e-5)


@settings(max_examples=200, deadline=None)
@given(batch=st.lists(params, min_size=1, max_size=6), logits_seed=st.integers(0, 1 << 32))
def test_filters_keep_what_the_reference_keeps(batch, logits_seed):
    logits = normal_logits(logits_seed, len(batch))
    logits -= logits.max(axis=-1, keepdims=True)

    filtered = np.array(Filters(batch, VOCAB)(mx.array(logits)))

    for row, row_params in enumerate(batch):
        x = logits[row].astype(np.float64)
        mask = filtered[row] > -np.inf
        low, high = (reference.kept(x, row_params, s) for s in (-1e-5, 1e-5))
        assert (mask == low).all() or (mask == high).all()
        assert (filtered[row][mask] == logits[row][mask]).all()


@pytest.mark.parametrize("mate", [{}, {"top_k": 6, "top_p": 0.5}, {"top_p": 0.5}, {"min_p": 0.5}])
def test_tokens_too_light_to_add_up_in_float32_are_kept_without_top_p(mate):
    light = mx.array([[0.0] + [-30.0] * 7] * 3)
    batch = [SamplingParams(), SamplingParams(**mate), SamplingParams(top_k=8 - 1)]
    filtered = np.array(Filters(batch, 8)(light))
    assert (filtered[[0, 2]] == np.array(light)[[0, 2]]).all()
