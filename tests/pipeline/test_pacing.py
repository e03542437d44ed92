"""The number of micro-batches that measured step times lead to."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from pipeline.pacing import FORGET, FORGET_ALL, Pacing

StepTime = Callable[[int], float]
"""Seconds of one stage for a batch size."""


def flat(batch: int) -> float:
    return 0.010


def linear(batch: int) -> float:
    return 0.002 * batch


def mostly_flat(batch: int) -> float:
    return 0.010 + 0.00001 * batch


def mixed(batch: int) -> float:
    return 0.010 + 0.002 * batch


def measured(step_time: StepTime, stages: int, sizes: tuple[int, ...] = (1, 2, 4, 8)) -> Pacing:
    """After two steps of each size: the first one of a size does not count."""
    pacing = Pacing(stages)
    for batch in (*sizes, *sizes):
        pacing.observe(batch, (step_time(batch),) * stages)
    return pacing


@pytest.mark.parametrize(
    ("step_time", "stages", "sequences", "groups"),
    [
        (flat, 3, 1, 1),
        (flat, 3, 12, 1),
        (mostly_flat, 3, 12, 1),
        (linear, 3, 1, 1),
        (linear, 3, 2, 2),
        (linear, 3, 12, 4),  # one more than stages, which costs nothing here and hides delays
        (linear, 8, 64, 10),
        (linear, 8, 8, 8),
        (linear, 8, 9, 9),  # eight groups would be as slow as for 16 sequences
        (linear, 1, 12, 1),
        (mixed, 3, 12, 3),
        (mixed, 3, 0, 1),
    ],
)
def test_groups_follow_the_step_times(
    step_time: StepTime, stages: int, sequences: int, groups: int
) -> None:
    assert measured(step_time, stages).groups(sequences) == groups


def test_before_anything_is_known_the_stages_are_filled() -> None:
    pacing = Pacing(3)
    assert [pacing.groups(sequences) for sequences in (1, 2, 3, 12)] == [1, 2, 3, 3]
    for _ in range(5):
        pacing.observe(4, (0.1, 0.1, 0.1))  # one size says nothing about others
    assert pacing.groups(12) == 3


def test_a_flat_line_needs_no_more_than_one_group() -> None:
    pacing = Pacing(3)
    assert pacing.groups(12) == 3  # nothing is known
    for batch in (1, 4, 1, 4):
        pacing.observe(batch, (mostly_flat(batch),) * 3)
    assert pacing.groups(12) == 1  # 0.8 % more by the line: less than the steps that it saves


def test_the_line_goes_through_the_slowest_stage() -> None:
    pacing = Pacing(3)
    for batch in (2, 4, 2, 4):
        pacing.observe(batch, (0.001, 0.010 + 0.001 * batch, 0.002))
    assert pacing.fit() == pytest.approx((0.010, 0.001), rel=0.2)


@pytest.mark.parametrize(
    ("points", "line"),
    [
        ({1: 0.02, 8: 0.01}, (0.015, 0.0)),  # falling: noise around a flat line
        ({4: 0.001, 8: 0.011}, (0.0, 0.001)),  # steeper than through the origin
    ],
)
def test_no_line_is_impossible(points: dict[int, float], line: tuple[float, float]) -> None:
    pacing = Pacing(1)
    for batch, seconds in [*points.items(), *points.items()]:
        pacing.observe(batch, (seconds,))
    assert pacing.fit() == pytest.approx(line)


def test_the_cycle_is_a_trip_or_the_slowest_stage_at_work() -> None:
    pacing = Pacing(3)
    for batch in (1, 4, 1, 4):
        slowest = 0.010 + 0.001 * batch
        pacing.observe(batch, (slowest / 2, slowest, slowest / 2))
    line = pacing.fit()
    assert line is not None
    fixed, each = line
    one, two, three, four = pacing.cycles(12, 4)
    assert one == pytest.approx(2 * (fixed + 12 * each), rel=1e-3)  # 1/2 + 1 + 1/2 times T(12)
    assert two == pytest.approx(2 * (fixed + 6 * each) * 2**pacing.noise)  # both
    assert three == pytest.approx(3 * (fixed + 4 * each), rel=1e-3)  # the slowest serves three
    assert four == pytest.approx(4 * (fixed + 3 * each), rel=1e-3)


def steady_run(pacing: Pacing, step_time: StepTime, noise: float, seed: int) -> list[int]:
    """The choices over 1500 steps with 11 to 13 sequences and noisy times."""
    r = random.Random(seed)
    choices = []
    for _ in range(1500):
        sequences = r.choice([11, 12, 12, 12, 13])
        choices.append(pacing.groups(sequences))
        batch = -(-sequences // choices[-1])
        times = [step_time(batch) * max(0.5, r.gauss(1, noise)) for _ in range(pacing.stages)]
        pacing.observe(batch, tuple(times))
    return choices


@pytest.mark.parametrize(("step_time", "groups"), [(flat, 1), (linear, 4), (mixed, 3)])
@pytest.mark.parametrize("seed", range(5))
def test_noise_moves_no_sequences(step_time: StepTime, groups: int, seed: int) -> None:
    choices = steady_run(measured(step_time, stages=3), step_time, noise=0.02, seed=seed)
    assert set(choices) == {groups}


def test_a_difference_below_the_gain_changes_nothing() -> None:
    """Between LOSS and GAIN the choice depends on where one comes from."""

    def rising(batch: int) -> float:
        return 0.010 + 0.000027 * batch  # one group of 12 costs 1.6 % more than two of 6

    few, many = measured(flat, 3), measured(linear, 3)
    assert (few.groups(12), many.groups(12)) == (1, 4)
    for pacing in (few, many):
        for _ in range(300):
            for batch in (1, 2, 4, 8):
                pacing.observe(batch, (rising(batch),) * 3)
                pacing.groups(12)
    assert few.choice.groups == 1
    assert "too little" in few.choice.reason
    assert many.choice.groups == 2


def test_a_load_that_changes_its_nature_is_noticed() -> None:
    pacing = measured(flat, 3)
    assert pacing.groups(12) == 1
    for _ in range(100):
        for batch in (4, 12):
            pacing.observe(batch, (linear(batch),) * 3)
            pacing.groups(12)
    assert pacing.choice.groups >= 3


def test_sizes_that_no_longer_occur_are_forgotten() -> None:
    stale, never = measured(flat, 3, sizes=(1, 2)), Pacing(3)
    for pacing in (stale, never):
        for _ in range(FORGET):
            for batch in (4, 12):
                pacing.observe(batch, (linear(batch),) * 3)
    assert stale.fit() == pytest.approx(never.fit())


def test_the_choice_survives_a_load_that_shows_one_size_only() -> None:
    pacing = measured(flat, 3)
    assert pacing.groups(12) == 1
    for _ in range(3 * FORGET_ALL - 2):
        pacing.observe(12, (0.010,) * 3)
        assert pacing.groups(12) == 1


def test_a_wrong_measurement_does_not_last() -> None:
    """Steps over two sequences seemed three times as long, and so each sequence goes alone."""
    pacing = Pacing(2)
    for _ in range(4):
        for batch in (1, 2):
            pacing.observe(batch, (3 * flat(batch) if batch == 2 else flat(batch),) * 2)
    assert pacing.groups(4) == 4
    for _ in range(4 * FORGET_ALL):
        pacing.observe(-(-4 // pacing.groups(4)), (flat(1),) * 2)
    assert pacing.groups(4) == 1


def test_sizes_close_together_say_little_about_others() -> None:
    """The noisier the steps, the less: one odd size of three neighbours does not make a slope."""
    slopes = []
    for noise in (0.0, 0.5):
        pacing = Pacing(3)
        for _ in range(200):
            for batch in (11, 12, 13):
                seconds = 0.0100 if batch < 13 else 0.0102
                pacing.observe(batch, (seconds * (1 - noise), seconds, seconds * (1 + noise)))
                pacing.observe(batch, (seconds * (1 + noise), seconds, seconds * (1 - noise)))
        line = pacing.fit()
        assert line is not None
        slopes.append(line[1])
    assert slopes[1] < 0.7 * slopes[0]


def test_the_first_step_of_a_size_compiles_and_is_not_counted() -> None:
    pacing = Pacing(3)
    for batch in (1, 2, 4):
        pacing.observe(batch, (5.0,) * 3)
        assert pacing.fit() is None or batch > 2
        pacing.observe(batch, (linear(batch),) * 3)
    assert pacing.fit() == pytest.approx((0.0, 0.002), abs=0.0005)
    assert pacing.groups(12) == 4
