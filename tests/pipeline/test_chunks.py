"""The size of prefill chunks: what is measured, and that no other sizes are better."""

from __future__ import annotations

import random
from itertools import accumulate

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipeline.chunks import FIXED_TOKENS, MULTIPLE, ChunkSizes, Cost, cut, delay, pairs

COSTS = st.builds(
    lambda fixed, token, attention: Cost(fixed * token, token, attention * token),
    st.floats(0.0, 1000.0),
    st.floats(1e-6, 1.0),
    st.sampled_from([0.0, 1e-5, 3e-4, 4e-3]),
)


def seconds(cost: Cost, start: int, size: int) -> float:
    return cost.fixed + cost.work(start, size)


def told(chunks: ChunkSizes, cost: Cost, spans: list[tuple[int, int]], noise: float = 0.0) -> None:
    r = random.Random(7)
    for start, size in spans:
        took = seconds(cost, start, size) * max(0.5, r.gauss(1.0, noise))
        chunks.observe(size, took, pairs(start, size))


def measured(stages: int, cost: Cost, sizes: list[int]) -> ChunkSizes:
    chunks = ChunkSizes(stages)
    told(chunks, cost, [(0, size) for size in sizes])
    return chunks


def prompt_of(sizes: tuple[int, ...]) -> list[tuple[int, int]]:
    return list(zip(accumulate(sizes, initial=0), sizes, strict=False))


def flow(cost: Cost, stages: int, start: int, sizes: tuple[int, ...]) -> float:
    """Seconds until the last chunk has left the last stage, each waiting for its turn and its input."""
    free = [0.0] * stages
    for at, size in zip(accumulate(sizes, initial=start), sizes, strict=False):
        ready = 0.0
        for stage in range(stages):
            ready = free[stage] = max(ready, free[stage]) + seconds(cost, at, size)
    return free[-1]


@given(
    cost=COSTS,
    stages=st.integers(1, 16),
    start=st.integers(0, 5000),
    length=st.integers(1, 3000),
    most=st.integers(1, 600),
    others=st.floats(0.0, 100.0),
)
@settings(deadline=None)
def test_sizes_add_up_and_none_is_too_large(
    cost: Cost, stages: int, start: int, length: int, most: int, others: float
) -> None:
    sizes = cut(cost, stages, start, start + length, most, others)
    assert sum(sizes) == length
    assert min(sizes) >= 1
    assert max(sizes) <= most
    assert most < MULTIPLE or all(size % MULTIPLE == 0 for size in sizes[:-1])


@given(
    cost=COSTS,
    stages=st.integers(2, 16),
    start=st.integers(0, 5000),
    length=st.integers(1, 3000),
    most=st.integers(1, 40).map(lambda tiles: tiles * MULTIPLE),
)
@example(Cost(16.0, 1.0, 1 / 3000), 8, 0, 3000, 512)
@example(Cost(82.0, 1.0, 1e-5), 2, 0, 81, 64)
@settings(deadline=None)
def test_no_fixed_size_is_faster(
    cost: Cost, stages: int, start: int, length: int, most: int
) -> None:
    mine = flow(cost, stages, start, cut(cost, stages, start, start + length, most))
    best = min(
        flow(cost, stages, start, fixed_sizes(length, size))
        for size in range(MULTIPLE, most + 1, MULTIPLE)
    )
    assert mine <= best * (1 + 1e-6)


def fixed_sizes(length: int, size: int) -> tuple[int, ...]:
    whole, rest = divmod(length, size)
    return (size,) * whole + ((rest,) if rest else ())


@given(
    attention=st.sampled_from([0.0, 1e-4, 1e-3]),
    fixed=st.floats(0.5, 100.0),
    stages=st.integers(2, 16),
    length=st.integers(600, 3000),
)
@settings(deadline=None, max_examples=20, derandomize=True)  # seen to hold, not proven
def test_chunks_that_are_chosen_one_after_the_other_are_as_fast(
    attention: float, fixed: float, stages: int, length: int
) -> None:
    """Each one when it is due, from what was measured by then."""
    cost = Cost(fixed, 1.0, attention)
    chunks = ChunkSizes(stages)
    told(chunks, cost, [(start, size) for start in (0, 500, 3000) for size in (16, 64, 256)] * 3)
    sizes: list[int] = []
    while (done := sum(sizes)) < length:
        found = chunks.best(done, length, 512, others=chunks.cost.work(0, done))
        sizes.append(min(found, length - done))
    mine, planned = tuple(sizes), cut(cost, stages, 0, length, 512)
    assert flow(cost, stages, 0, mine) <= 1.15 * flow(cost, stages, 0, planned)


def test_chunks_get_shorter_along_a_prompt_so_that_they_take_equal_times() -> None:
    cost = Cost(16.0, 1.0, 1 / 2000)
    sizes = cut(cost, 8, 0, 8000, 512)
    times = [seconds(cost, start, size) for start, size in prompt_of(sizes)[:-1]]
    assert list(sizes) == sorted(sizes, reverse=True)
    assert sizes[0] >= 3 * sizes[-2]
    assert max(times) <= 1.4 * min(times)  # sizes are multiples
    assert delay(cost, 8, 0, sizes) < delay(cost, 8, 0, (128,) * 62 + (64,))


@pytest.mark.parametrize("noise", [0.0, 0.1])
@pytest.mark.parametrize("attention", [0.0, 1 / 8000, 1 / 1000])
def test_attention_is_found_in_prompts_of_different_lengths(attention: float, noise: float) -> None:
    cost = Cost(20.0, 1.0, attention)
    chunks = ChunkSizes(4)
    for length in (300, 4000, 900, 50, 2000):
        told(chunks, cost, prompt_of(cut(chunks.cost, 4, 0, length, 512)), noise)
    for start, size in ((0, 64), (0, 256), (3000, 64)):
        expected = seconds(cost, start, size)
        assert seconds(chunks.cost, start, size) == pytest.approx(expected, rel=0.1 + 3 * noise)


@given(
    st.lists(
        st.tuples(st.integers(1, 512), st.integers(0, 9000), st.floats(0.0, 10.0)), max_size=40
    )
)
@settings(deadline=None)
def test_nothing_measured_leads_to_negative_times(observed: list[tuple[int, int, float]]) -> None:
    chunks = ChunkSizes(4)
    for size, start, took in observed:
        chunks.observe(size, took, pairs(start, size))
    cost = chunks.cost
    assert cost.fixed >= 0
    assert cost.pair >= 0
    assert cost.token > 0
    assert 1 <= chunks.best(0, 3000, 512) <= 512


def test_a_pause_of_the_machine_counts_little() -> None:
    chunks = measured(4, Cost(16.0, 1.0), [32, 64, 128] * 10)
    chunks.observe(64, 1000.0)
    assert seconds(chunks.cost, 0, 64) < 1.5 * 80


@given(
    st.floats(0.0, 3000.0),
    st.lists(st.integers(1, 4096), min_size=40, max_size=60).filter(
        lambda c: len(set(c)) > len(c) // 2
    ),
)
@settings(deadline=None, derandomize=True)  # seen to hold, not proven
def test_what_a_chunk_costs_beside_its_tokens_is_found(fixed: float, sizes: list[int]) -> None:
    chunks = measured(4, Cost(fixed, 1.0), sizes)
    spread = max(sizes) + fixed
    assert chunks.fixed_tokens() == pytest.approx(fixed, abs=0.35 * spread)


@pytest.mark.parametrize("seed", range(4))
def test_decode_steps_tell_what_chunks_of_one_time_leave_open(seed: int) -> None:
    cost, stages, r = Cost(20.0, 1.0, 1 / 600), 4, random.Random(seed)
    chunks = ChunkSizes(stages)
    spans = prompt_of(cut(cost, stages, 0, 5900, 128))
    for number in range(9):
        chunks.observe_step((cost.fixed + cost.work(number, 1)) * r.gauss(1.0, 0.1), number)
    for start, size in spans:
        chunks.observe(size, seconds(cost, start, size) * r.gauss(1.0, 0.1), pairs(start, size))
        assert chunks.cost.fixed > 0.7 * cost.fixed


def test_chunks_may_cost_more_beside_their_tokens_than_decode_steps_take() -> None:
    cost = Cost(16.0, 1.0)
    chunks = measured(4, cost, [16, 32, 64, 128] * 4)
    for _ in range(3):
        chunks.observe_step(2.0, 0.0)
    assert chunks.cost.fixed == pytest.approx(cost.fixed, rel=0.05)


def test_a_first_step_that_compiles_counts_nothing() -> None:
    chunks = measured(4, Cost(16.0, 1.0), [16, 32, 64, 128] * 4)
    chunks.observe_step(5000.0, 0.0)
    assert chunks.cost.fixed == pytest.approx(16.0, rel=0.05)


def test_of_one_size_only_the_usual_is_assumed() -> None:
    assert ChunkSizes(4).fixed_tokens() == FIXED_TOKENS
    usual = measured(4, Cost(3.0, 0.1), [128] * 50).fixed_tokens()
    assert usual == pytest.approx(FIXED_TOKENS, rel=0.2)


def test_one_stage_takes_as_much_as_it_may() -> None:
    assert ChunkSizes(1).best(0, 5000, 512) == 512


def test_where_size_costs_nothing_chunks_grow() -> None:
    flat = measured(3, Cost(1.0, 1e-9), [16, 32, 64] * 20)
    steep = measured(3, Cost(0.1, 0.1), [16, 32, 64] * 20)
    assert flat.best(0, 2000, 512) > 2 * steep.best(0, 2000, 512)


def test_short_prompts_leave_room_for_others_beside_them() -> None:
    """As large as the chunks of one long prompt that is as much work."""
    chunks = ChunkSizes(8)
    many = chunks.best(0, 8, 512, others=chunks.cost.work(0, 31 * 8))
    assert many >= 2 * 8
    assert many == pytest.approx(chunks.best(0, 32 * 8, 512), abs=MULTIPLE)
