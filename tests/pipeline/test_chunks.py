"""The size of prefill chunks: what is measured, and that no other size is much better."""

from __future__ import annotations

from math import ceil

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pipeline.chunks import FIXED_TOKENS, MULTIPLE, ChunkSizes


def measured(stages: int, fixed: float, per_token: float, sizes: list[int]) -> ChunkSizes:
    chunks = ChunkSizes(stages)
    for size in sizes:
        chunks.observe(size, fixed + per_token * size)
    return chunks


def seconds(prompt: int, size: int, stages: int, fixed: float, per_token: float) -> float:
    """Until the last chunk has left the last stage."""
    last = prompt - size * (ceil(prompt / size) - 1)
    whole = ceil(prompt / size) - 1
    step = fixed + per_token * size
    return whole * step + fixed + per_token * last + (stages - 1) * step


@given(
    stages=st.integers(2, 64),
    prompt=st.integers(1, 100_000),
    fixed_tokens=st.floats(0.5, 1000.0),
    per_token=st.floats(1e-6, 1.0),
)
@example(8, 2000, 2.0, 0.01)
@example(64, 100_000, 1000.0, 1e-6)
def test_no_other_size_is_much_better(
    stages: int, prompt: int, fixed_tokens: float, per_token: float
) -> None:
    fixed = fixed_tokens * per_token
    chunks = measured(stages, fixed, per_token, [32, 64, 96, 128] * 30)
    chosen = min(chunks.best(prompt, most=1 << 20), prompt)
    mine = seconds(prompt, chosen, stages, fixed, per_token)
    others = (min(2**n, prompt) for n in range(4, 18))
    best = min(seconds(prompt, size, stages, fixed, per_token) for size in others)
    assert mine <= 1.25 * best
    assert chosen % MULTIPLE == 0 or chosen == prompt


@given(
    st.floats(0.0, 3000.0),
    st.lists(st.integers(1, 4096), min_size=40, max_size=60).filter(lambda c: len(set(c)) > 8),
)
def test_what_a_chunk_costs_beside_its_tokens_is_found(fixed: float, sizes: list[int]) -> None:
    chunks = measured(4, fixed, 1.0, sizes)
    spread = max(sizes) + fixed
    assert chunks.fixed_tokens() == pytest.approx(fixed, abs=0.35 * spread)


def test_of_one_size_only_the_usual_is_assumed() -> None:
    assert ChunkSizes(4).fixed_tokens() == FIXED_TOKENS
    assert measured(4, 3.0, 0.1, [128] * 50).fixed_tokens() == pytest.approx(FIXED_TOKENS)


def test_one_stage_takes_as_much_as_it_may() -> None:
    assert ChunkSizes(1).best(5000, 512) == 512


@given(st.integers(1, 64), st.integers(1, 10_000), st.integers(1, 512))
def test_it_is_never_more_than_allowed(stages: int, prompt: int, most: int) -> None:
    assert 1 <= ChunkSizes(stages).best(prompt, most) <= most


def test_where_size_costs_nothing_chunks_grow() -> None:
    flat = measured(3, 1.0, 0.0, [16, 32, 64] * 20)
    assert flat.best(2000, 512) > 2 * measured(3, 0.1, 0.1, [16, 32, 64] * 20).best(2000, 512)
