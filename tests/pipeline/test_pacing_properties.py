"""What holds for Pacing whatever it is told, and the prefill chunks that it sizes."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.chunks import pairs
from pipeline.pacing import MARGIN, MARGIN_OF_ONE, SMALLEST_CHUNK, Pacing
from pipeline.scheduler import PrefillBatch
from pipeline.stalls import CHUNK_MEMORY, longest_stall
from pipeline.steps import PrefillChunk
from tests.pipeline.scheduler_driver import Driver, limits

Event = tuple[str, int, list[float]]

TIMES = st.lists(st.floats(0.0, 10.0), min_size=8, max_size=8)
EVENTS = st.lists(st.tuples(st.sampled_from(["decode", "prefill"]), st.integers(1, 64), TIMES))


def told(stages: int, events: list[Event]) -> Pacing:
    pacing = Pacing(stages)
    for kind, size, times in events:
        seconds = tuple(times[:stages])
        if kind == "decode":
            pacing.observe(size, seconds)
        else:
            pacing.observe_prefill(size, seconds)
    return pacing


@given(st.integers(1, 8), EVENTS, st.lists(st.integers(0, 100), min_size=1))
@settings(deadline=None)
def test_any_times_lead_to_a_choice_that_can_be_shown(
    stages: int, events: list[Event], loads: list[int]
) -> None:
    pacing = told(stages, events)
    for sequences in loads:
        groups = pacing.groups(sequences)
        choice = pacing.choice
        assert 1 <= groups <= max(1, min(2 * stages, sequences))
        assert (choice.groups, choice.sequences) == (groups, sequences)
        assert choice.reason
        assert all(cycle >= 0 for cycle in choice.cycles)
        assert (choice.fixed is None) == (choice.slope is None) == (not choice.cycles)
        assert not choice.cycles or len(choice.cycles) >= groups


@given(st.integers(1, 8), EVENTS, st.floats(1e-3, 10), st.floats(0, 10), st.integers(1, 600))
@settings(deadline=None)
def test_a_chunk_is_never_empty_nor_larger_than_allowed_and_grows_with_the_bound(
    stages: int, events: list[Event], bound: float, more: float, most: int
) -> None:
    pacing = told(stages, events)
    pacing.groups(4)
    chunk = pacing.chunk(bound, most)
    assert min(most, SMALLEST_CHUNK) <= chunk <= most
    assert pacing.chunk(bound + more, most) >= chunk


@given(
    stages=st.integers(1, 8),
    fixed=st.floats(0, 0.01),
    each=st.floats(1e-5, 1e-2),
    bound=st.floats(0.3, 5),
    first=st.integers(1, 512),
)
@settings(deadline=None, max_examples=40)
def test_chunks_settle_where_they_use_the_bound(
    stages: int, fixed: float, each: float, bound: float, first: int
) -> None:
    """Whatever size comes first: their stall comes to the planned share of the bound, or size to its limits."""
    pacing = Pacing(stages)
    chunk = first
    for _ in range(100):
        pacing.observe_prefill(chunk, (fixed + each * chunk,) * stages)
        chunk = pacing.chunk(bound, 512)
    planned = bound * (MARGIN if stages > 1 else MARGIN_OF_ONE)
    stall = stages * (fixed + each * chunk)
    if chunk > SMALLEST_CHUNK:
        assert stall <= planned * 1.01
    if chunk < 512:
        larger = stages * (fixed + each * (1.3 * chunk + 2))
        assert larger >= planned


@given(
    stages=st.integers(1, 8),
    attention=st.sampled_from([0.0, 1e-4, 1e-3]),
    starts=st.lists(st.integers(0, 4000), min_size=8, max_size=8),
)
@settings(deadline=None, max_examples=20)
def test_what_is_before_a_chunk_counts(stages: int, attention: float, starts: list[int]) -> None:
    """Behind a long history it is shorter, and takes no more than the bound allows, at once."""
    pacing = Pacing(stages)

    def seconds(start: int, tokens: int) -> float:
        return 1e-3 * (tokens + attention * pairs(start, tokens))

    for start in (0, 4000, 500, 2000) * 5:
        for tokens in (32, 64):
            took = (seconds(start, tokens),) * stages
            pacing.observe_prefill(tokens, took, pairs(start, tokens))
    for start in starts:
        tokens = pacing.chunk(0.4, 512, start)
        assert longest_stall((seconds(start, tokens),) * stages) <= 0.4
        assert tokens <= pacing.chunk(0.4, 512, 0)


def test_before_prefill_was_measured_chunks_are_small() -> None:
    pacing = Pacing(2)
    assert pacing.chunk(1.0, 512) == SMALLEST_CHUNK
    pacing.observe_prefill(4, (9.0, 9.0))  # the first one compiles
    assert pacing.chunk(1.0, 512) == SMALLEST_CHUNK
    pacing.observe_prefill(100, (0.1, 0.1))
    assert pacing.chunk(1.0, 512) == 384  # 0.8 s, at 2 ms for each token


def test_decoding_takes_its_part_of_the_bound() -> None:
    pacing = Pacing(2)
    for _ in range(2):
        pacing.observe_prefill(100, (0.1, 0.1))
        for batch in (1, 4):
            pacing.observe(batch, (0.1, 0.1))
    assert pacing.groups(1) == 1
    assert pacing.chunk(1.0, 512) == 288  # 0.2 s of 0.8 for the trip


def test_a_pause_of_the_machine_does_not_stop_prefill() -> None:
    pacing = Pacing(2)
    for _ in range(10):
        pacing.observe_prefill(100, (0.1, 0.1))
    pacing.observe_prefill(100, (60.0, 60.0))
    assert pacing.chunk(1.0, 512) >= 128
    for _ in range(10 * CHUNK_MEMORY // 100):
        pacing.observe_prefill(100, (0.1, 0.1))
    assert pacing.chunk(1.0, 512) == 384


def test_a_pause_of_the_machine_moves_no_sequences() -> None:
    pacing = Pacing(3)
    for _ in range(20):
        for batch in (1, 2, 4, 12):
            pacing.observe(batch, (0.010,) * 3)
            pacing.groups(12)
    assert pacing.choice.groups == 1
    pacing.observe(12, (5.0, 5.0, 5.0))
    assert pacing.groups(12) == 1


def test_a_single_size_is_left_for_a_moment_to_learn_a_slope() -> None:
    pacing = Pacing(3)
    chosen = []
    for _ in range(60):
        groups = pacing.groups(9)
        chosen.append(groups)
        pacing.observe(-(-9 // groups), (0.010,) * 3)
    assert chosen[0] == 3
    assert 5 in chosen  # 2 instead of 3 sequences in each
    assert chosen[-1] == 1  # T is flat


def test_what_others_have_decided_is_shown_beside_what_was_measured() -> None:
    pacing = Pacing(3)
    for batch in (1, 4, 1, 4):
        pacing.observe(batch, (0.01 * batch,) * 3)
    pacing.groups(12)
    assert pacing.settle(12, 2, "it was configured") == 2
    choice = pacing.choice
    assert (choice.groups, choice.reason) == (2, "it was configured")
    assert choice.slope == pytest.approx(0.01, rel=0.1)


# in the scheduler


@given(
    stages=st.integers(1, 4),
    seconds=st.floats(1e-4, 0.05),
    bound=st.floats(0.01, 1.0),
    prompts=st.lists(st.integers(1, 300), min_size=1, max_size=8),
)
@settings(deadline=None, max_examples=50)
def test_every_request_ends_whatever_the_bound(
    stages: int, seconds: float, bound: float, prompts: list[int]
) -> None:
    driver = Driver(limits(stages=stages, prefill_chunk=64, inter_token=bound))  # type: ignore[arg-type]
    for prompt in prompts:
        driver.add(prompt, 6)
    for _ in range(3000):
        while driver.choose() is not None:
            pass
        if not driver.flying:
            break
        work = driver.flying[0].work
        tokens = work.tokens if isinstance(work, PrefillBatch) else 1
        driver.absorb((seconds * tokens,) * stages)
    assert not driver.budget
    driver.drain()


def test_another_bound_counts_from_the_next_chunk() -> None:
    driver = Driver(replace(limits(stages=2, prefill_chunk=64), inter_token=9.0, fixed_chunk=True))
    driver.add(prompt=1, max_tokens=1000)
    driver.add(prompt=4000)
    sizes: list[int] = []
    for turn in range(80):
        if turn == 40:
            driver.scheduler.reconfigure(replace(driver.scheduler.limits, inter_token=0.2))
            sizes.clear()
        plan = driver.choose()
        work = plan.work if plan is not None else None
        sizes += [work.tokens] if isinstance(work, PrefillBatch) else []
        if plan is None or len(driver.flying) > 2:
            work = driver.flying[0].work
            tokens = work.tokens if isinstance(work, PrefillBatch) else 1
            driver.absorb((0.002 * tokens,) * 2)
        if turn == 39:
            assert max(sizes) == 64
    assert 8 <= max(sizes) <= 0.2 / (2 * 0.002)


@pytest.mark.parametrize(
    ("groups", "batchable", "word"), [(2, True, "scheduler.groups"), (None, False, "one")]
)
def test_the_reason_names_what_decides(groups: int | None, batchable: bool, word: str) -> None:
    driver = Driver(limits(groups=groups, batchable=batchable))
    for _ in range(4):
        driver.add(prompt=1, max_tokens=20)
    for _ in range(8):
        driver.turn()
    assert word in driver.scheduler.pacing.choice.reason


def test_without_running_streams_the_bound_cuts_no_chunk() -> None:
    driver = Driver(limits(prefill_chunk=64, inter_token=0.01, fixed_chunk=True))  # type: ignore[arg-type]
    driver.add(prompt=200)
    chunks = [plan.work for plan in iter(driver.choose, None)]
    assert chunks[0] == PrefillBatch((PrefillChunk(0, 0, 64),))
