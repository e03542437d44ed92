"""What the scheduler has to reach on simulated stages, whose times vary by a seeded random factor."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from benchlib.lone_prompts import Ring
from benchlib.simulation import (
    Curve,
    Load,
    Measured,
    Network,
    Phase,
    Simulation,
    Stages,
    StageTimes,
)
from pipeline.pacing import OTHERS
from pipeline.scheduler import Limits, Scheduler
from pipeline.stalls import longest_stall

FOREVER = 1_000_000  # tokens
COMPUTE = StageTimes(Curve.line(0.0, 2e-3), Curve.line(0.0, 2e-4))
FLAT = StageTimes(Curve.line(10e-3, 0.0), Curve.line(10e-3, 5e-5))
MEMORY = StageTimes(Curve.line(10e-3, 2e-5), Curve.line(10e-3, 5e-5))
LOADS = (1, 2, 4, 8, 16, 32, 64)
SLOW_PREFILL = (
    1e-3  # seconds for each token in each stage: 4,000 of them would stall others for seconds
)


def simulated(
    stage: StageTimes,
    stages: int,
    load: Load,
    groups: int | None = None,
    noise: float = 0.0,
    seed: int = 0,
    bound: float | None = None,
) -> tuple[list[Measured], Simulation]:
    limits = Limits(
        stages=stages,
        max_requests=1000,
        max_running=1000,
        max_group=1000,
        prefill_chunk=512,
        groups=groups,
        inter_token=bound,
    )
    ring = Stages([stage] * stages, Network(latency=1e-4), noise, seed)
    simulation = Simulation(Scheduler(limits), ring, load)
    return simulation.run(), simulation


def mean(values: tuple[float, ...]) -> float:
    return sum(values) / len(values)


@pytest.mark.parametrize("streams", [16, 24, 32, 64])
@pytest.mark.parametrize(("noise", "seed"), [(0.0, 0), (0.1, 0), (0.1, 1)])
def test_eight_compute_bound_stages_are_busy(streams: int, noise: float, seed: int) -> None:
    load = Load((Phase(streams, 200),), 1, FOREVER)
    (measured,), _ = simulated(COMPUTE, 8, load, noise=noise, seed=seed)
    assert mean(measured.utilisation) >= 0.95
    assert measured.moves <= 0.01 * measured.tokens


def test_eight_streams_fill_eight_stages_exactly() -> None:
    (measured,), _ = simulated(COMPUTE, 8, Load((Phase(8, 200),), 1, FOREVER))
    assert mean(measured.utilisation) >= 0.95


@pytest.mark.parametrize("streams", LOADS)
@pytest.mark.parametrize("noise", [0.0, 0.1])
@pytest.mark.parametrize("stage", [FLAT, MEMORY], ids=["flat", "rising"])
@pytest.mark.parametrize(("prompt", "output"), [(1, FOREVER), (33, 100)], ids=["steady", "joining"])
def test_three_memory_bound_stages_are_as_fast_as_with_the_best_number_of_groups(
    stage: StageTimes, streams: int, noise: float, prompt: int, output: int
) -> None:
    load = Load((Phase(streams, 300),), prompt, output)

    def rate(groups: int | None) -> float:
        (measured,), _ = simulated(stage, 3, load, groups, noise)
        return measured.tokens_per_s

    assert rate(None) >= 0.95 * max(rate(groups) for groups in (1, 2, 3))


CHANGING = (Phase(4, 200), Phase(32, 200), Phase(4, 200))


@pytest.mark.parametrize("noise", [0.0, 0.1])
@pytest.mark.parametrize("seed", [0, 1])
def test_compute_bound_stages_stay_busy_when_the_load_changes(noise: float, seed: int) -> None:
    phases, _ = simulated(COMPUTE, 8, Load(CHANGING, 1, FOREVER), noise=noise, seed=seed)
    few, many, few_again = (mean(measured.utilisation) for measured in phases)
    assert many >= 0.95
    # Four streams can't be in more than four stages, and a hop takes 5 % of a step over one.
    assert min(few, few_again) >= 0.94 * 4 / 8


@pytest.mark.parametrize("noise", [0.0, 0.1])
@pytest.mark.parametrize("stage", [FLAT, MEMORY], ids=["flat", "rising"])
def test_the_best_number_of_groups_is_found_again_when_the_load_changes(
    stage: StageTimes, noise: float
) -> None:
    load = Load(CHANGING, 33, 100)
    fixed = [simulated(stage, 3, load, groups, noise)[0] for groups in (1, 2, 3)]
    phases, _ = simulated(stage, 3, load, None, noise)
    for number, measured in enumerate(phases):
        best = max(other[number].tokens_per_s for other in fixed)
        assert measured.tokens_per_s >= 0.95 * best


@pytest.mark.parametrize("noise", [0.0, 0.1])
@pytest.mark.parametrize("bound", [0.25, 0.4])
@pytest.mark.parametrize(
    ("stages", "fixed", "each"), [(2, 0.01, 0.0005), (3, 0.01, 0.0), (8, 0.0, 0.002)]
)
def test_a_long_prompt_keeps_running_streams_within_the_bound(
    stages: int, fixed: float, each: float, bound: float, noise: float
) -> None:
    stage = StageTimes(Curve.line(fixed, each), Curve.line(0.01, SLOW_PREFILL))
    load = Load((Phase(8, 150),), 33, FOREVER, long_prompt=4000)
    _, unbound = simulated(stage, stages, load, noise=noise)
    _, bounded = simulated(stage, stages, load, noise=noise, bound=bound)
    assert max(unbound.gaps_meanwhile) > bound  # with chunks that bring the prompt through soonest
    assert max(bounded.gaps_meanwhile) <= bound
    assert bounded.long_wait is not None
    assert unbound.long_wait is not None
    if bound >= 0.5:
        assert bounded.long_wait < 1.3 * unbound.long_wait


@given(
    chunk=st.lists(st.floats(0.05, 1.0), min_size=1, max_size=8),
    decode=st.lists(st.floats(0.01, 0.3), min_size=8, max_size=8),
    groups=st.integers(1, 16),
    streams=st.integers(1, 24),
    chunks=st.integers(1, 40),
)
@example([1.0, 1.0], [0.05] * 8, 4, 5, 5)  # results wait until the first stage has done its chunk
@example([0.05, 1.0, 1.0, 1.0], [0.05] * 8, 1, 1, 40)  # many wait in front of the second one
@settings(deadline=None, max_examples=60)
def test_no_token_is_later_than_pacing_reckons_with(
    chunk: list[float], decode: list[float], groups: int, streams: int, chunks: int
) -> None:
    """Chunks of one size through stages of any speed, whatever the number of groups."""
    stages = len(chunk)
    groups = min(groups, streams, 2 * stages)
    ring = [
        StageTimes(Curve.line(step, 0.0), Curve.line(0.0, seconds / 16))
        for step, seconds in zip(decode, chunk, strict=False)
    ]
    limits = Limits(stages, 1000, 1000, 1000, prefill_chunk=16, fixed_chunk=True, groups=groups)
    load = Load((Phase(streams, 60),), 1, FOREVER, long_prompt=16 * chunks)
    simulation = Simulation(Scheduler(limits), Stages(ring, Network(latency=1e-4)), load)
    simulation.run()
    cycle = max(sum(decode[:stages]), groups * max(decode[:stages]))
    reckoned = longest_stall(tuple(chunk)) + OTHERS * cycle
    assert max(simulation.gaps_meanwhile) <= reckoned + 0.01


@pytest.mark.parametrize("prompt", [1500, 4000])
@pytest.mark.parametrize("stages", [4, 8])
def test_no_size_of_chunk_is_faster_than_sizes_that_follow_the_attention(
    stages: int, prompt: int
) -> None:
    stage = StageTimes(Curve.line(0.0, 2e-3), Curve.line(0.016, 1e-3), attention=3e-7)
    ring = Ring([stage] * stages, Network(latency=1e-4), 0.0, 0)
    limits = Limits(stages, 10, 10, 10, prefill_chunk=512)
    found = ring.first_token(limits, prompt)
    assert found <= min(
        ring.first_token(replace(limits, prefill_chunk=size, fixed_chunk=True), prompt)
        for size in (48, 80, 112)
    )
