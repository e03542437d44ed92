"""Which prompts are prefilled side by side."""

from __future__ import annotations

from dataclasses import replace
from itertools import chain

import pytest

from pipeline.limits import Limits, Sequence
from pipeline.prefilling import Prefilling, Room, copied_at_most
from pipeline.scheduler import DecodeBatch, PrefillBatch
from pipeline.steps import PrefillChunk
from tests.pipeline.scheduler_driver import ChosenPacing, Driver, limits


def queue(*lengths: int) -> Prefilling:
    prefilling = Prefilling()
    for number, length in enumerate(lengths):
        prefilling.append(Sequence(number, prompt=length + 1, max_tokens=1))
    return prefilling


def taken(
    prefilling: Prefilling, tokens: int, rows: int = 8, padding: float = 4.0, copied: float = 9999
) -> list[int]:
    """Whose chunks are in the next step."""
    return list(prefilling.take(Room(tokens, rows, padding, copied))[0].sequences)


@pytest.mark.parametrize(
    ("lengths", "expected"),
    [
        ((10, 10, 10, 10), [0, 1, 2]),  # a fourth would be too much
        ((10, 8, 12, 30), [0, 1]),  # nearest first; with 12 it would be 36 tokens
        ((9, 9, 4, 6), [0, 1, 3]),  # 3 tokens of padding, not 5
        ((5, 11), [0]),  # 6 of padding
        ((40, 5, 5), [0]),  # a chunk in the middle of a prompt is alone
        ((33, 33), [0]),
        ((1,) * 20, list(range(8))),
    ],
)
def test_the_last_chunks_of_prompts_of_about_one_length_go_together(
    lengths: tuple[int, ...], expected: list[int]
) -> None:
    assert taken(queue(*lengths), 32) == expected


def test_all_padding_of_a_row_counts() -> None:
    """A wider row pads those that are there already."""
    assert taken(queue(4, 4, 4, 5, 7), 64) == [0, 1, 2, 3]


def test_without_padding_only_equal_lengths_go_together() -> None:
    assert taken(queue(7, 6, 7, 8, 7), 64, padding=0.0) == [0, 2, 4]


def after_prefixes(*held: int) -> Prefilling:
    """Prompts of which 5 tokens are left."""
    prefilling = Prefilling()
    for number, copied in enumerate(held):
        prefilling.append(
            Sequence(number, prompt=copied + 6, max_tokens=1, prefilled=copied, copied=copied)
        )
    return prefilling


@pytest.mark.parametrize(
    ("held", "expected"),
    [
        ((0, 0, 300, 0), [[0, 1, 3], [2]]),  # all would be as long as the longest
        ((300, 0, 0, 0), [[0, 1, 2], [3]]),
        ((300, 300, 300, 300), [[0, 1, 2], [3]]),
        ((2000, 2000), [[0], [1]]),
    ],
)
def test_what_is_copied_of_caches_is_bounded(
    held: tuple[int, ...], expected: list[list[int]]
) -> None:
    prefilling = after_prefixes(*held)
    assert [taken(prefilling, 64, copied=1000.0) for _ in range(2)] == expected


@pytest.mark.parametrize(
    ("attention", "padding", "expected"),
    [
        (0.0, 4.0, [[0, 1, 3, 2]]),
        (0.01, 4.0, [[0, 1, 3], [2]]),  # each would attend to 300 tokens more, worth 15 of its own
        (0.01, 50.0, [[0, 1, 3], [2]]),  # four rows like that are more than the step may take
    ],
)
def test_what_rows_attend_to_counts(
    attention: float, padding: float, expected: list[list[int]]
) -> None:
    prefilling = after_prefixes(0, 0, 300, 0)
    room = Room(30, 8, padding, 9999, attention)
    turns = []
    while prefilling:
        turns.append([*prefilling.take(room)[0].sequences])
    assert turns == expected


def test_behind_a_long_history_a_step_holds_as_many_rows_of_it_as_its_first_row_is_allowed() -> (
    None
):
    """A step of 20 tokens in one row, behind 300 others: four rows of five are as much."""
    prefilling = after_prefixes(300, 300, 300, 300, 300)
    assert prefilling.take(Room(20, 8, 4.0, 9999, 0.01))[0].sequences == (0, 1, 2, 3)


def test_little_is_copied_where_memory_is_short() -> None:
    limit = wide(128, kv_tokens=5000)
    assert copied_at_most(limit, 1000) == 1000
    assert copied_at_most(replace(limit, kv_tokens=10**6), 1000) == 64 * 128
    assert copied_at_most(replace(limit, kv_tokens=None), 1000) == 64 * 128


@pytest.mark.parametrize(("kv_tokens", "rows"), [(4000, [1, 1, 1]), (9000, [3])])
def test_kept_sequences_leave_less_memory_for_copies(kv_tokens: int, rows: list[int]) -> None:
    """Of 4,000, 978 are reserved and 924 kept: a quarter of the rest is less than two copies."""
    stem, other = [i % 7 for i in range(320)], [i % 5 for i in range(600)]
    driver = Driver(wide(64, prefix_tokens=2000, kv_tokens=kv_tokens))
    for prompt in (stem, other):
        driver.add(prompt, 3)
        while driver.budget:
            driver.turn()
    before = len(plans_of(driver))
    for own in range(3):
        driver.add([*stem, own, own], 4)
    driver.drain()
    assert [len(batch.chunks) for batch in plans_of(driver)[before:]] == rows


def test_turns_go_on_behind_those_that_were_taken() -> None:
    prefilling = queue(40, 5, 50, 6)
    turns = [taken(prefilling, 32) for _ in range(4)]
    assert turns == [[0], [1, 3, 0], [2], [2]]  # of 0, 8 tokens were left
    assert len(prefilling) == 0


def wide(chunk: int, **changes: int | None) -> Limits:
    """Room for many; steps of one size, whatever is measured."""
    many = {"max_requests": 64, "max_running": 64, "max_group": 64}
    return limits(prefill_chunk=chunk, fixed_chunk=True, **{**many, **changes})


def plans_of(driver: Driver) -> list[PrefillBatch]:
    return [plan.work for plan in driver.plans if isinstance(plan.work, PrefillBatch)]


def test_many_short_prompts_take_few_steps() -> None:
    driver = Driver(wide(64))
    for _ in range(32):
        driver.add(prompt=9, max_tokens=30)
    driver.drain()
    assert [len(batch.chunks) for batch in plans_of(driver)] == [8] * 4


def test_a_short_rest_behind_a_prefix_goes_with_others() -> None:
    """Long prompts of which little is left: more of them may begin than take turns."""
    stem = [i % 7 for i in range(320)]
    driver = Driver(wide(64, prefix_tokens=9999))
    driver.add(stem, 30)
    while not any(driver.scheduler.groups):
        driver.turn()
    for own in range(12):
        driver.add([*stem, own, own, own, own], 4)
    driver.drain()
    assert max(len(batch.chunks) for batch in plans_of(driver)) == 12


@pytest.mark.parametrize("changes", [{"batchable": False}, {"loops": 2}, {"max_group": 1}])
def test_one_by_one_where_nothing_can_be_batched(changes: dict[str, int]) -> None:
    driver = Driver(limits(prefill_chunk=64, **changes), ChosenPacing(1))
    for _ in range(8):
        driver.add(prompt=9)
    driver.drain()
    assert [len(batch.chunks) for batch in plans_of(driver)] == [1] * 8


def test_padding_counts_for_running_streams() -> None:
    """A step beside streams is as large as the bound allows, all rows and their padding together."""
    driver = Driver(replace(wide(256), fixed_chunk=False, inter_token=0.5))
    for _ in range(4):
        driver.add(prompt=1, max_tokens=400)
    for number in range(40):
        driver.add(prompt=10 + number % 3, max_tokens=5)
    for _ in range(2000):
        while driver.choose() is not None:
            pass
        if not driver.flying:
            break
        work = driver.flying[0].work
        driver.absorb((0.002 * work.tokens if isinstance(work, PrefillBatch) else 0.01,) * 3)
    late = [batch.tokens for batch in plans_of(driver)[3:]]
    assert max(late) <= 0.5 / (4 * 0.002)
    assert max(len(batch.chunks) for batch in plans_of(driver)) > 1
    driver.drain()


def test_one_of_several_is_cancelled_while_its_chunk_is_under_way() -> None:
    driver = Driver(wide(64))
    first, second, third = (driver.add(prompt=9) for _ in range(3))
    plan = driver.choose()
    assert plan is not None
    assert plan.work == PrefillBatch(tuple(PrefillChunk(s, 0, 8) for s in (first, second, third)))
    driver.finish(second)
    driver.drain()
    fed = chain(*(p.work.sequences for p in driver.plans if isinstance(p.work, DecodeBatch)))
    assert set(fed) == {first, third}
