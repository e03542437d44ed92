"""What the scheduler chooses in single situations: chunks, groups, admission, refusals."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pipeline.errors import ContextTooLong, QueueFull
from pipeline.pacing import Pacing
from pipeline.scheduler import DecodeBatch, PrefillBatch, Scheduler
from pipeline.steps import Admitted, PrefillChunk
from tests.pipeline.scheduler_driver import ChosenPacing, Driver, limits


@pytest.mark.parametrize("stages", [1, 2, 4])
@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("patience", [1, 3, 8])
def test_a_long_prompt_delays_a_stream_by_no_more_chunks_than_keep_the_stages_busy(
    stages: int, groups: int, patience: int
) -> None:
    """Chunks between two steps of one stream; `patience`: results are taken after so many choices."""
    driver = Driver(limits(stages=stages), ChosenPacing(groups))
    streams = [driver.add(1, 1000) for _ in range(4)]
    for _ in range(20):
        driver.turn()
    long = [driver.add(400, 1), driver.add(400, 1)]
    first = len(driver.plans)
    while any(sequence in driver.budget for sequence in long):
        for _ in range(patience):
            driver.choose()
        driver.absorb()
    for stream in streams:
        chunks = worst = 0
        for plan in driver.plans[first:]:
            if isinstance(plan.work, PrefillBatch):
                chunks += 1
            elif isinstance(plan.work, DecodeBatch) and stream in plan.work.sequences:
                worst, chunks = max(worst, chunks), 0
        assert 1 <= worst <= max(1, stages - 1)


def test_an_idle_pipeline_takes_one_prompt_into_all_stages_at_once() -> None:
    driver = Driver(limits(stages=3, prefill_chunk=4))
    driver.add(prompt=21)
    chunks = [plan.work for plan in iter(driver.choose, None)]
    expected = [PrefillBatch((PrefillChunk(0, n, n + 4),)) for n in range(0, 20, 4)]
    assert chunks[:5] == expected
    # Needs no result: the last token of the prompt is known.
    assert chunks[5] == DecodeBatch(0, (0,))


def test_groups_fill_the_stages() -> None:
    driver = Driver(limits(stages=3), ChosenPacing(3))
    for _ in range(6):
        driver.add(prompt=1, max_tokens=100)
    for _ in range(20):
        driver.turn()
    while driver.choose() is not None:
        pass
    batches = [plan.work for plan in driver.flying]
    assert sorted(len(batch.sequences) for batch in batches if batch) == [2, 2, 2]


@pytest.mark.parametrize(
    ("before", "after", "sizes"), [(1, 3, [3, 3, 2]), (3, 1, [8]), (4, 2, [4, 4])]
)
def test_running_groups_follow_the_pacing(before: int, after: int, sizes: list[int]) -> None:
    pacing = ChosenPacing(before)
    driver = Driver(limits(stages=4), pacing)
    for _ in range(8):
        driver.add(prompt=1, max_tokens=100)
    for _ in range(20):
        driver.turn()
    pacing.wanted = after
    for _ in range(40):
        driver.turn()
    assert sorted(map(len, filter(None, driver.scheduler.groups)), reverse=True) == sizes


def test_groups_are_levelled_when_one_loses_members() -> None:
    driver = Driver(limits(stages=2), ChosenPacing(2))
    for _ in range(8):
        driver.add(prompt=1, max_tokens=100)
    for _ in range(20):
        driver.turn()
    for sequence in driver.scheduler.groups[0][:3]:
        driver.finish(sequence)
    for _ in range(20):
        driver.turn()
    assert sorted(map(len, driver.scheduler.groups)) == [2, 3]


def test_a_newcomer_does_not_wait_for_the_step_of_one_that_was_cancelled() -> None:
    driver = Driver(limits(stages=2), ChosenPacing(2))
    first = driver.add(prompt=1)
    driver.choose()
    driver.finish(first)
    second = driver.add(prompt=1)
    plan = driver.choose()
    assert plan is not None
    assert plan.work == DecodeBatch(1, (second,))


def test_memory_is_counted_for_all_that_are_admitted_together() -> None:
    driver = Driver(limits(kv_tokens=20))
    first, _ = driver.add(prompt=5, max_tokens=6), driver.add(prompt=5, max_tokens=6)
    plan = driver.choose()
    assert plan is not None
    assert plan.admitted == (Admitted(first),)


def test_a_model_that_loops_has_one_step_in_flight_and_one_group() -> None:
    driver = Driver(limits(stages=3, loops=2), ChosenPacing(3))
    for _ in range(4):
        driver.add(prompt=6, max_tokens=50)
    for _ in range(20):
        driver.turn()
    assert driver.choose() is not None
    assert driver.choose() is None
    assert [len(group) for group in driver.scheduler.groups if group] == [4]


def test_one_token_each_where_the_architecture_cannot_batch() -> None:
    driver = Driver(limits(batchable=False), ChosenPacing(1))
    for _ in range(5):
        driver.add(prompt=3)
    driver.drain()
    assert all(
        len(plan.work.sequences) == 1 for plan in driver.plans if isinstance(plan.work, DecodeBatch)
    )


@pytest.mark.parametrize(
    ("before", "after", "sizes"), [(8, 2, [2] * 4), (1, 8, [8]), (8, 1, [1] * 8), (1, 2, [2] * 4)]
)
def test_another_batch_size_is_reached_after_a_change_while_running(
    before: int, after: int, sizes: list[int]
) -> None:
    driver = Driver(limits(max_group=before), ChosenPacing(1))
    for _ in range(8):
        driver.add(prompt=1, max_tokens=200)
    for _ in range(5):
        driver.turn()
    driver.scheduler.reconfigure(replace(driver.scheduler.limits, max_group=after))
    for _ in range(60):
        driver.turn()
    assert [len(group) for group in driver.scheduler.groups if group] == sizes


def test_no_batch_size_makes_an_architecture_batch() -> None:
    driver = Driver(limits(batchable=False), ChosenPacing(1))
    driver.scheduler.reconfigure(replace(driver.scheduler.limits, max_group=8))
    for _ in range(4):
        driver.add(prompt=1, max_tokens=20)
    for _ in range(20):
        driver.turn()
    assert [len(group) for group in driver.scheduler.groups if group] == [1] * 4


def test_cancelled_before_the_stages_have_heard_of_it() -> None:
    """A full turn admits nobody; a cancellation in the queue leaves no trace in any step."""
    driver = Driver(limits(max_running=1))
    first, second = driver.add(prompt=3), driver.add(prompt=3)
    driver.choose()
    driver.finish(second)
    driver.drain()
    assert [a.sequence for plan in driver.plans for a in plan.admitted] == [first]
    assert [s for plan in driver.plans for s in plan.released] == [first]


def test_a_released_sequence_makes_room_in_the_same_step() -> None:
    driver = Driver(limits(max_running=1, kv_tokens=10))
    first, second = driver.add(prompt=5), driver.add(prompt=5)
    driver.choose()
    driver.finish(first)
    plan = driver.choose()
    assert plan is not None
    assert (plan.released, plan.admitted) == ((first,), (Admitted(second),))


def test_refusals() -> None:
    scheduler = Scheduler(limits(max_requests=2, context=50, kv_tokens=40))
    with pytest.raises(ContextTooLong, match=r"length is 50 tokens.* needs 51"):
        scheduler.add(0, 50, 1)
    with pytest.raises(ContextTooLong) as memory:
        scheduler.add(0, 40, 1)
    assert (memory.value.asked, memory.value.limit) == (41, 40)
    scheduler.add(0, 40, 0)
    scheduler.add(1, 1, 1)
    with pytest.raises(QueueFull):
        scheduler.add(2, 1, 1)
    with pytest.raises(KeyError):
        scheduler.absorb(0)


def test_large_requests_are_not_overtaken() -> None:
    driver = Driver(limits(kv_tokens=20))
    driver.add(prompt=5, max_tokens=10)
    large, small = driver.add(prompt=5, max_tokens=15), driver.add(prompt=1, max_tokens=1)
    driver.drain()
    order = [a.sequence for plan in driver.plans for a in plan.admitted]
    assert order.index(large) < order.index(small)


def test_a_short_prompt_overtakes_a_long_one() -> None:
    driver = Driver(limits(prefill_chunk=4))
    long, short = driver.add(prompt=101), driver.add(prompt=6)
    while short not in driver.stages.decoded:
        driver.turn()
    assert driver.stages.held[long] < 100


def test_step_times_reach_the_pacing() -> None:
    pacing = Pacing(stages=3)
    driver = Driver(limits(groups=1), pacing)
    for seconds in ((0.1, 0.2, 0.1), (0.1, 0.3, 0.1)):
        driver.add(prompt=1)
        for _ in range(2):  # the first step of a size does not count
            driver.choose()
            driver.absorb(seconds)
    assert pacing.fit() == pytest.approx((0.1, 0.1), rel=0.3)  # one sequence: 0.2 s, two: 0.3 s


@pytest.mark.parametrize("fixed", [True, False])
def test_a_configured_chunk_size_is_obeyed(fixed: bool) -> None:
    driver = Driver(limits(stages=8, prefill_chunk=512, fixed_chunk=fixed))
    driver.add(1025)
    driver.turn()
    first = driver.plans[0].work
    assert isinstance(first, PrefillBatch)
    assert (first.tokens == 512) is fixed
