"""What decode steps that wait for prompts bring and cost, on simulated stages."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import pipeline.scheduler
import pipeline.turns
from benchlib.simulation import (
    Arrival,
    Curve,
    Load,
    Measured,
    Network,
    Phase,
    Simulation,
    Stages,
    StageTimes,
)
from pipeline.chunks import pairs
from pipeline.scheduler import Limits, Scheduler
from pipeline.turns import Verdict

# About what the two halves of the demo model take on a core each.
DECODE = Curve(((1, 0.040), (8, 0.067), (16, 0.086)))
FIRST = StageTimes(DECODE, Curve(((47, 0.137), (94, 0.240))), overhead=0.006)
LAST = StageTimes(DECODE, Curve(((47, 0.098), (94, 0.160))), overhead=0.006)
BOUND = 1.0


@dataclass
class Result:
    measured: Measured
    scheduler: Scheduler

    @property
    def rate(self) -> float:
        return self.measured.tokens_per_s

    def first_token(self, share: float) -> float:
        return percentile(self.measured.first_tokens, share)

    def gap(self, share: float) -> float:
        return percentile(self.measured.gaps, share)


def percentile(values: Sequence[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def simulated(
    times: Sequence[StageTimes],
    load: Load,
    noise: float = 0.1,
    seed: int = 0,
    **changes: float | None,
) -> Result:
    limits = Limits(
        stages=len(times),
        max_requests=1000,
        max_running=1000,
        max_group=32,
        prefill_chunk=128,
        **{"inter_token": BOUND, **changes},  # type: ignore[arg-type]
    )
    scheduler = Scheduler(limits)
    train(scheduler, times)
    ring = Stages(times, Network(latency=3e-4), noise, seed)
    (measured,) = Simulation(scheduler, ring, load).run()
    return Result(measured, scheduler)


def train(scheduler: Scheduler, times: Sequence[StageTimes]) -> None:
    """What a server has seen that has been at work for a while."""
    for _ in range(20):
        for batch in (1, 4, 16):
            scheduler.pacing.observe(batch, tuple(stage.decode(batch) for stage in times))
        for tokens in (16, 48, 96, 192):
            seconds = tuple(stage.chunk(0, tokens) for stage in times)
            scheduler.pacing.observe_prefill(tokens, seconds, pairs(0, tokens))


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """The same load where no step waits for more than goes freely."""

    def run(*args: object, **changes: object) -> Result:
        with monkeypatch.context() as patch:
            patch.setattr(pipeline.scheduler, "weigh", lambda *_: Verdict(False))
            return simulated(*args, **changes)  # type: ignore[arg-type]

    return run


@pytest.mark.parametrize(
    ("times", "streams", "gain"),
    [([FIRST, LAST], 16, 1.01), ([FIRST, LAST], 32, 1.02), ([FIRST] * 7 + [LAST], 32, 1.15)],
    ids=["2-16", "2-32", "8-32"],
)
def test_requests_that_come_at_once_are_through_sooner(
    times: list[StageTimes], streams: int, gain: float, impatient: Callable[..., Result]
) -> None:
    # Limits hold for many seeds: the last bit of a matrix product, and with it the course of a run, is
    # another one on another processor.
    load = Load.burst(streams, prompt=48, output=48, each=2)
    before, now = impatient(times, load), simulated(times, load)
    assert now.rate >= gain * before.rate
    assert now.first_token(0.95) <= 0.9 * before.first_token(0.95)
    assert now.gap(0.95) <= before.gap(0.95)
    assert now.scheduler.postponed.chunks > 0
    assert before.scheduler.postponed.chunks == 0


@pytest.mark.parametrize("streams", [4, 16])
def test_in_steady_traffic_hardly_any_step_waits(
    streams: int, impatient: Callable[..., Result]
) -> None:
    times, load = [FIRST, LAST], Load((Phase(streams, 250),), prompt=48, output=100)
    before, now = impatient(times, load), simulated(times, load)
    assert now.rate >= 0.99 * before.rate
    assert now.gap(0.99) <= 1.05 * before.gap(0.99)


def test_a_long_prompt_goes_among_streams_as_before(impatient: Callable[..., Result]) -> None:
    times, load = [FIRST, LAST], Load((Phase(8, 150),), 48, 100_000, long_prompt=4000)
    before, now = impatient(times, load), simulated(times, load)
    assert now.rate >= 0.96 * before.rate
    assert max(now.measured.gaps) <= BOUND


TIMES = st.builds(
    lambda fixed, each, chunk, token: StageTimes(
        Curve.line(fixed, each * fixed), Curve.line(chunk * fixed, token * fixed)
    ),
    fixed=st.floats(0.002, 0.05),
    each=st.floats(0.0, 0.3),
    chunk=st.floats(0.5, 2.0),
    token=st.floats(0.005, 0.05),
)


@given(
    stage=TIMES,
    stages=st.sampled_from([1, 2, 3, 8]),
    streams=st.integers(2, 24),
    prompt=st.sampled_from([8, 48, 200]),
    seed=st.integers(0, 9),
)
@settings(deadline=None, max_examples=20, derandomize=True)  # seen to hold, not proven
def test_waiting_never_costs_much(
    stage: StageTimes, stages: int, streams: int, prompt: int, seed: int
) -> None:
    """Whatever the stages: what is lost by chance, as steps meet otherwise, is a few percent."""
    load = Load.burst(streams, prompt, output=24, each=2)
    now = simulated([stage] * stages, load, seed=seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline.scheduler, "weigh", lambda *_: Verdict(False))
        before = simulated([stage] * stages, load, seed=seed)
    assert now.rate >= 0.93 * before.rate


@given(
    stage=TIMES,
    slower=st.floats(0.6, 1.0),
    stages=st.sampled_from([1, 2, 3, 8]),
    running=st.integers(1, 6),
    bursts=st.lists(st.integers(1, 24), min_size=1, max_size=4),
    groups=st.sampled_from([1, 2, 4]),
    seed=st.integers(0, 99),
)
@settings(deadline=None, max_examples=40, derandomize=True)  # seen to hold, not proven
def test_no_token_of_a_running_stream_is_later_than_the_bound(
    stage: StageTimes,
    slower: float,
    stages: int,
    running: int,
    bursts: list[int],
    groups: int,
    seed: int,
) -> None:
    """Prompts that come by the dozen among streams, and are worth any wait; stages take what was measured."""
    other = StageTimes(
        Curve(tuple((x, slower * y) for x, y in stage.decode.points)),
        Curve(tuple((x, slower * y) for x, y in stage.prefill.points)),
    )
    times = ([stage, other] * stages)[:stages]
    cycle = max(sum(t.decode(32) for t in times), groups * max(t.decode(32) for t in times))
    bound = 2.5 * cycle + 2 * stages * stage.chunk(0, 48)
    chosen = random.Random(seed)
    arrivals = [Arrival(0.0, 1, 150) for _ in range(running)]
    for number, size in enumerate(bursts):
        at = (number + 1) * chosen.uniform(2, 10) * cycle
        arrivals += [Arrival(at, chosen.randint(2, 60), chosen.randint(1, 40)) for _ in range(size)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline.turns, "pays", lambda *_: True)
        result = simulated(times, Load.open(arrivals), 0.0, inter_token=bound, groups=groups)
    assert max(result.measured.gaps) <= bound


def test_the_same_load_is_served_in_the_same_way() -> None:
    load = Load.burst(12, prompt=48, output=20, each=2)
    one, other = (simulated([FIRST, LAST], load) for _ in range(2))
    assert one.measured == other.measured
    assert one.scheduler.postponed == other.scheduler.postponed
