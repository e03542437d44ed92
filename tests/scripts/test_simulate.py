"""The simulated ring by itself: its clock, its clients, its figures."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import simulate
from benchlib.real_run import RealLoad, RealResult, measurement_of
from benchlib.simulation import (
    Curve,
    Load,
    Measured,
    Network,
    Phase,
    Simulation,
    Stages,
    StageTimes,
    ideal_rate,
)
from benchlib.stage_times import Measurement, means, read
from pipeline.scheduler import DecodeBatch, Limits, PrefillBatch, Scheduler, StepPlan
from pipeline.steps import PrefillChunk

FOREVER = 1_000_000  # tokens


def limits(stages: int, groups: int | None = None, **changes: Any) -> Limits:
    return Limits(
        stages=stages,
        max_requests=1000,
        max_running=1000,
        max_group=1000,
        prefill_chunk=512,
        groups=groups,
        **changes,
    )


def run_one(
    times: list[StageTimes], load: Load, groups: int | None = None, network: Network | None = None
) -> tuple[Measured, Simulation]:
    scheduler = Scheduler(limits(len(times), groups))
    simulation = Simulation(scheduler, Stages(times, network), load)
    (measured,) = simulation.run()
    return measured, simulation


def line(fixed: float, each: float = 0.0, overhead: float = 0.0) -> StageTimes:
    return StageTimes(Curve.line(fixed, each), Curve.line(fixed, each), overhead)


def test_a_curve_is_straight_between_its_points_and_beyond_them() -> None:
    curve = Curve(((1, 1.0), (4, 4.0), (8, 6.0)))
    assert [curve(size) for size in (1, 2, 4, 6, 8, 10)] == pytest.approx([1, 2, 4, 5, 6, 7])
    assert Curve(((10, 1.0), (20, 11.0)))(1) == 0  # no time is negative


def test_a_step_goes_through_the_stages() -> None:
    """Graphs are built ahead, where the announcement is; tensors take time on the link, one after the other."""
    stages = Stages([line(1.0, overhead=0.1), line(2.0, overhead=0.1)], Network(0.25, 100.0, 50))
    plan = StepPlan(0, work=DecodeBatch(0, (0,)))
    free, arrival, seconds = stages.run(plan, now=10.0)
    assert free == pytest.approx(11.1)
    # 10.1 built, 11.1 computed, 0.5 on the link, 0.25 away; built there long before; 2.0 computed, 0.25 back.
    assert arrival == pytest.approx(11.1 + 0.5 + 0.25 + 2.0 + 0.25)
    assert seconds == (1.0, 2.0)
    _, second, _ = stages.run(StepPlan(1, work=DecodeBatch(1, (1,))), now=free)
    assert second == pytest.approx(arrival + 0.1 + 2.0)  # waits for the slower stage
    assert stages.busy == pytest.approx([2.2, 4.2])


def test_a_chunk_takes_its_tokens_and_a_note_nothing() -> None:
    stages = Stages([StageTimes(Curve.line(0, 1), Curve.line(0.5, 0.125))] * 2, Network(0.25))
    chunk = PrefillBatch((PrefillChunk(0, 10, 18),))
    assert stages.run(StepPlan(0, work=chunk), 0.0) == (1.5, 3.5, (1.5, 1.5))
    padded = PrefillBatch((PrefillChunk(1, 0, 8), PrefillChunk(2, 3, 4)))
    assert stages.run(StepPlan(1, work=padded), 9.0)[2] == (2.5, 2.5)
    assert stages.run(StepPlan(2, released=(0,)), 20.0) == (20.0, 20.5, ())


def test_a_chunk_takes_longer_behind_others() -> None:
    stage = StageTimes(Curve.line(0, 1), Curve.line(0.5, 0.125), attention=0.25)
    chunk = PrefillBatch((PrefillChunk(0, 10, 18),))
    assert stage.mean(chunk) == stage.chunk(10, 8) == 1.5 + 0.25 * (80 + 32)
    padded = PrefillBatch((PrefillChunk(1, 0, 8), PrefillChunk(2, 3, 4)))
    assert stage.mean(padded) == 2.5 + 2 * 0.25 * (24 + 32)


@pytest.mark.parametrize("stages", [1, 2, 5])
def test_one_stream_takes_one_trip_for_a_token(stages: int) -> None:
    network = Network(latency=0.01)
    load = Load((Phase(1, 100),), 1, FOREVER)
    measured, _ = run_one([line(0.1, overhead=0.02)] * stages, load, network=network)
    hops = 0.01 * stages if stages > 1 else 0.0
    assert measured.gaps == pytest.approx([0.02 + 0.1 * stages + hops] * len(measured.gaps))


@pytest.mark.parametrize(("groups", "cycle"), [(1, 3 * 0.07), (2, 3 * 0.04), (3, 3 * 0.03)])
def test_fixed_groups_take_the_cycle_of_the_theory(groups: int, cycle: float) -> None:
    load = Load((Phase(6, 100),), 1, FOREVER)
    measured, _ = run_one([line(0.01, 0.01)] * 3, load, groups)
    assert measured.seconds / (measured.tokens / 6) == pytest.approx(cycle, rel=0.02)
    assert measured.mean_groups == pytest.approx(groups)


def test_rank_0_chooses_only_when_its_own_stage_is_done() -> None:
    """With a slow first stage, results that have come back wait for it."""
    load = Load((Phase(2, 100),), 1, FOREVER)
    measured, _ = run_one([line(0.3), line(0.1)], load, groups=2)
    assert measured.utilisation == pytest.approx((1.0, 1 / 3), abs=0.01)
    assert max(measured.gaps) == pytest.approx(0.6)


def test_requests_follow_each_other_until_all_have_ended() -> None:
    load = Load((Phase(4, 30),), prompt=20, output=10, stagger=False, requests=12, warm_up=0.0)
    _, simulation = run_one([line(0.01, 0.001)] * 2, load)
    assert simulation.total_tokens == 120


@given(
    stages=st.integers(1, 4),
    fixed=st.floats(0, 0.02),
    each=st.floats(1e-4, 0.01),
    streams=st.integers(1, 12),
    prompt=st.sampled_from([1, 30]),
    noise=st.sampled_from([0.0, 0.2]),
    seed=st.integers(0, 3),
)
@settings(max_examples=40, deadline=None)
def test_nothing_is_faster_than_ideal_and_all_repeats(
    stages: int, fixed: float, each: float, streams: int, prompt: int, noise: float, seed: int
) -> None:
    times = [line(fixed, each)] * stages
    results = []
    for _ in range(2):
        ring = Stages(times, Network(1e-4), noise, seed)
        load = Load((Phase(streams, 60),), prompt, 25, long_prompt=100)
        simulation = Simulation(Scheduler(limits(stages)), ring, load)
        (measured,) = simulation.run()
        results.append((measured, simulation.long_wait, simulation.gaps_meanwhile))
    assert results[0] == results[1]
    assert all(0 < busy <= 1.05 for busy in measured.utilisation)  # steps on their way at its end
    if not noise and prompt == 1:
        assert measured.tokens_per_s <= 1.05 * ideal_rate(times, streams, prompt, 25)


def test_the_ideal_is_the_best_of_all_groups() -> None:
    compute, memory = line(0.0, 0.01), line(0.1)
    assert ideal_rate([compute] * 4, 8, 1, 10) == pytest.approx(100)
    assert ideal_rate([memory] * 4, 8, 1, 10) == pytest.approx(8 / 0.4)
    # A prompt of 11 tokens is 0.1 s of prefill for every 10 tokens.
    assert ideal_rate([compute] * 4, 8, 11, 10) == pytest.approx(1 / (0.01 + 0.1 / 10))


# the program


def arguments(monkeypatch: pytest.MonkeyPatch, *words: str) -> Any:
    monkeypatch.setattr(sys, "argv", ["simulate.py", *words])
    return simulate.parse_arguments()


def test_single_prompts(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.json"
    words = ["--stages", "4", "--prefill", "300", "--chunk", "128", "--attention", "1e-6"]
    words += ["--prefill-fixed", "0.016", "--prefill-each", "0.001", "--json", str(out)]
    monkeypatch.setattr(sys, "argv", ["simulate.py", *words])
    simulate.main()
    assert capsys.readouterr().out.splitlines()[-1].split()[:2] == ["4", "300"]
    [row] = json.loads(out.read_text())["rounds"]
    assert row["gain_percent"] >= -2
    assert row["fixed_size"] in range(16, 129, 16)
    divided = (3 * 0.016 + 299 * 0.001 + 1e-6 * 299**2 / 2) / row["first_token_s"]
    assert row["share_percent"] == pytest.approx(100 * divided)
    with pytest.raises(SystemExit):
        arguments(monkeypatch, "--prefill", "300", "--real")


def test_a_table_json_and_a_plot(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, plot = tmp_path / "out.json", tmp_path / "out.png"
    words = ["--stages", "1", "3", "--load", "6", "--tokens", "60", "--noise", "0.1"]
    words += ["--long-prompt", "500", "--json", str(out)]
    if pytest.importorskip("matplotlib"):
        words += ["--plot", str(plot)]
    monkeypatch.setattr(sys, "argv", ["simulate.py", *words])
    simulate.main()
    lines = capsys.readouterr().out.splitlines()
    assert [text.split()[:2] for text in lines[-2:]] == [["1", "6"], ["3", "6"]]
    rows = json.loads(out.read_text())["rounds"]
    assert [len(row["utilisation"]) for row in rows] == [1, 3]
    assert rows[1]["choice"]["groups"] >= 3
    assert rows[1]["choice"]["reason"]
    assert plot.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    "words",
    [
        ("--requests", "2", "--tokens", "60"),
        ("--real", "--tokens", "60"),
        ("--requests", "2", "--prefill", "300"),
        ("--requests", "2", "--long-prompt", "300"),
        ("--set", "scheduler.groups=2"),
        ("--model", "somewhere"),
        ("--quiet-launch",),
    ],
    ids=" ".join,
)
def test_what_would_not_be_read_is_refused_by_name(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: tuple[str, ...]
) -> None:
    with pytest.raises(SystemExit):
        arguments(monkeypatch, *words)
    assert words[0] in capsys.readouterr().err.partition("error: ")[2]


def test_single_times_overrule_a_preset(monkeypatch: pytest.MonkeyPatch) -> None:
    args = arguments(monkeypatch, "--preset", "memory-bound", "--each", "0.5")
    (times,), network = simulate.times_of(args, 1)
    assert times.decode(2) == pytest.approx(1.01)
    assert times.prefill(100) == pytest.approx(0.015)
    assert network.latency == 1e-4


def test_times_are_read_from_a_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "times.json"
    stage = {"decode": [[1, 0.1], [2, 0.15]], "prefill": [[10, 1.0]], "overhead": 0.01}
    path.write_text(json.dumps({"stages": [stage, stage], "latency": 0.001, "more": "ignored"}))
    args = arguments(monkeypatch, "--measure", str(path))
    times, network = simulate.times_of(args, 2)
    assert times[1].decode(4) == pytest.approx(0.25)
    assert times[1].prefill(99) == pytest.approx(1.0)  # one size says nothing about others
    assert (times[0].overhead, network.latency) == (0.01, 0.001)
    with pytest.raises(ValueError, match="2 stages were measured, 3 are wanted"):
        simulate.times_of(args, 3)


@pytest.mark.parametrize(
    "content",
    ["{", '{"stages": []}', '{"stages": [{"decode": [[2, 1], [1, 1]], "prefill": [[1, 1]]}]}'],
)
def test_a_file_without_times_is_named(tmp_path: Path, content: str) -> None:
    path = tmp_path / "times.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"times\.json holds no step times"):
        read(path)


def test_means_leave_out_rare_sizes() -> None:
    observed = [(1, 1.0), (1, 3.0), (1, 2.0), (2, 4.0), (2, 4.0), (2, 4.0), (3, 99.0)]
    assert means(observed) == ((1.0, 2.0), (2.0, 4.0))
    assert means([(1, 1.0), (2, 4.0)]) == ((1.0, 1.0), (2.0, 4.0))


def test_a_ring_that_is_as_measured_is_predicted(monkeypatch: pytest.MonkeyPatch) -> None:
    """A simulated ring in place of the real one."""
    args = arguments(monkeypatch, "--real", "--latency", "0.001")
    truth = [line(0.010, 0.001, overhead=0.002), line(0.014, 0.002, overhead=0.002)]
    results = [as_if_real(truth, streams, args) for streams in (1, 4)]
    found = measurement_of(results, args.latency)
    assert [stage.overhead for stage in found.stages] == pytest.approx([0.002] * 2, abs=1e-4)
    for result in results:
        row = simulate.compare(args, result, found)
        assert row["off_percent"] == pytest.approx(0, abs=2)
    read_back = msgspec.convert(row["times"], Measurement)
    assert read_back == found


def as_if_real(truth: list[StageTimes], streams: int, args: Any) -> RealResult:
    scheduler = Scheduler(simulate.limits_of(args, len(truth)))
    decode: list[tuple[int, tuple[float, ...]]] = []
    prefill: list[tuple[int, tuple[float, ...]]] = []
    observe, observe_prefill = scheduler.pacing.observe, scheduler.pacing.observe_prefill

    class Noting(type(scheduler.pacing)):  # type: ignore[misc]
        def observe(self, batch: int, seconds: tuple[float, ...]) -> None:
            decode.append((batch, seconds))
            observe(batch, seconds)

        def observe_prefill(
            self, tokens: int, seconds: tuple[float, ...], attended: float = 0.0
        ) -> None:
            prefill.append((tokens, seconds))
            observe_prefill(tokens, seconds, attended)

    scheduler.pacing.__class__ = Noting
    requests = 3 * streams
    phase = Phase(streams, 3 * args.output)
    load = Load((phase,), args.prompt, args.output, False, requests, warm_up=0.0)
    simulation = Simulation(scheduler, Stages(truth, Network(args.latency)), load)
    (measured,) = simulation.run()
    return RealResult(
        RealLoad(streams, requests, args.prompt, args.output),
        simulation.now,
        simulation.total_tokens,
        sum(measured.gaps) / len(measured.gaps),
        tuple(decode),
        tuple(prefill),
    )
