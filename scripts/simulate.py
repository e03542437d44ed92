#!/usr/bin/env python3
"""Run the real scheduler against simulated stages: how busy they are, tokens per second, and what is ideal.

    python scripts/simulate.py                                               # compute-bound, 1 to 64 stages
    python scripts/simulate.py --preset memory-bound --stages 3 --load 1 2 4 8 16 32 64 --noise 0.1
    python scripts/simulate.py --stages 8 --load 32 --fixed 0.004 --each 0.001 --latency 0.0005
    python scripts/simulate.py --stages 3 --load 8 --long-prompt 4000        # arrives among the others
    python scripts/simulate.py --stages 2 --load 16 32 --prompt 48 --output 48 --requests 2  # all at once
    python scripts/simulate.py --stages 4 8 --prefill 1500 4000 8000 --prefill-fixed 0.016 \\
        --prefill-each 0.001 --attention 3e-7                               # single prompts
    python scripts/simulate.py --real --load 1 4 8 --json measured.json      # predicted against measured
    python scripts/simulate.py --measure measured.json --stages 2 --load 16

Nothing is measured except with --real, and the same arguments give the same numbers.  Times are those of one
stage, in seconds; all stages are alike unless they were measured.  Requests come in a closed loop.  `busy` is
the share of the time in which a stage computes or builds a graph, after a warm-up; `ideal` is a rate that
nothing can exceed with these times: best number of micro-batches, no waiting, hops, noise or overhead.

--requests N does as `bench_serving.py`: every stream begins at once and sends N requests, nothing is known of
the stages, and rates are over all of the time, from the first prompt to the end of the last stream.

--prefill sends single prompts through an idle ring, and compares with the best of all chunk sizes where all
chunks of a prompt have the same.  `of ideal` is the share of the time in which each stage is at work if one
stage with all layers had to take the prompt, in the largest chunks, divided by the stages.

--real runs the demo model over two ranks on this machine without HTTP, takes the mean times of each stage from
that run, and simulates the same requests.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import msgspec

from benchlib.lone_prompts import Ring
from benchlib.options import (
    above_zero,
    add_setup_arguments,
    at_least_zero,
    new_parser,
    parse,
    positive,
    run,
    run_rounds,
    say,
    setup_of,
)
from benchlib.real_run import RealLoad, RealResult, measure, measurement_of, serve_rank
from benchlib.report import Column, new_figure, save_figure, table, write_json
from benchlib.servers import scratch_folder
from benchlib.simulation import (
    Load,
    Measured,
    Network,
    Phase,
    Simulation,
    Stages,
    StageTimes,
    ideal_rate,
)
from benchlib.stage_times import PRESETS, Measurement, read
from benchlib.stats import medians_by, percentiles, ratio
from pipeline.scheduler import Limits, Scheduler

FEWEST_TOKENS = 20  # of each stream; the first third is the warm-up, and steps come in groups
Row = dict[str, Any]

COLUMNS = (
    Column("stages", "stages", ".0f"),
    Column("streams", "streams", ".0f"),
    Column("groups", "groups"),
    Column("busy_percent", "busy %"),
    Column("least_busy_percent", "least %"),
    Column("tokens_per_s", "tok/s"),
    Column("ideal", "ideal"),
    Column("share_percent", "of ideal %"),
    Column("inter_token_ms_p50", "inter-token ms p50"),
    Column("inter_token_ms_p99", "p99"),
    Column("inter_token_ms_max", "max"),
)
REAL_COLUMNS = (
    Column("streams", "streams", ".0f"),
    Column("batch", "mean batch"),
    Column("measured", "measured tok/s"),
    Column("predicted", "predicted tok/s"),
    Column("off_percent", "off by %"),
)


def times_of(args: argparse.Namespace, stages: int) -> tuple[list[StageTimes], Network]:
    """As measured, or as the preset and the options that overrule it say.  Raises ValueError."""
    if args.measure:
        found = read(args.measure)
        return found.ring(stages), found.network
    preset = PRESETS[args.preset]
    names = [field.name for field in fields(preset)]
    given = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    one = replace(preset, **given).times(args.overhead)
    bandwidth = args.bandwidth or float("inf")
    return [one] * stages, Network(args.latency, bandwidth, args.token_bytes)


def limits_of(args: argparse.Namespace, stages: int) -> Limits:
    """What the scheduler may use: memory is no limit here."""
    return Limits(
        stages=stages,
        max_requests=1 << 20,
        max_running=1 << 20,
        max_group=args.max_group,
        prefill_chunk=args.chunk,
        groups=args.groups,
        inter_token=args.bound,
    )


PREFILL_COLUMNS = (
    Column("stages", "stages", ".0f"),
    Column("prompt", "prompt", ".0f"),
    Column("first_token_s", "first token, s", ".3f"),
    Column("share_percent", "of ideal %"),
    Column("fixed_s", "of one size, s", ".3f"),
    Column("fixed_size", "that size", ".0f"),
    Column("gain_percent", "gain %"),
)


def prefill_round(args: argparse.Namespace, number: int) -> list[Row]:
    """Every ring, with every length of prompt."""
    rows: list[Row] = []
    for stages in args.stages:
        times, network = times_of(args, stages)
        ring = Ring(times, network, args.noise, args.seed + number)
        limits = limits_of(args, stages)
        for prompt in args.prefill:
            seconds = ring.first_token(limits, prompt)
            fixed, size = ring.best_size(limits, prompt)
            row = {"stages": stages, "prompt": prompt, "first_token_s": seconds}
            row |= {
                "fixed_s": fixed,
                "fixed_size": size,
                "gain_percent": 100 * (fixed / seconds - 1),
            }
            rows.append(row | {"share_percent": 100 * ring.divided(limits, prompt) / seconds})
            say(f"{stages} stages, {prompt} tokens: {seconds:.3f} s")
    return rows


def report_prefill(args: argparse.Namespace, rows: Sequence[Row], of_what: str) -> None:
    """Show and write the results of single prompts."""
    summary = medians_by(rows, "stages", "prompt")
    print(f"\nSimulated, one prompt at a time; {of_what}.\n")
    print(table(PREFILL_COLUMNS, summary))
    write_json(args, benchmark="simulate-prefill", summary=summary, rounds=rows)


def simulate(args: argparse.Namespace, stages: int, streams: int, seed: int) -> Row:
    """One load on one ring.  Raises ValueError."""
    times, network = times_of(args, stages)
    scheduler = Scheduler(limits_of(args, stages))
    if args.requests:
        load = Load.burst(streams, args.prompt, args.output, args.requests)
    else:
        phase = Phase(streams, args.tokens)
        load = Load((phase,), args.prompt, args.output, long_prompt=args.long_prompt)
    simulation = Simulation(scheduler, Stages(times, network, args.noise, seed), load)
    (measured,) = simulation.run()
    row = {"stages": stages, "streams": streams, **numbers(measured)}
    row["ideal"] = ideal_rate(times, streams, args.prompt, args.output)
    row["share_percent"] = 100 * measured.tokens_per_s / row["ideal"]
    row["utilisation"] = measured.utilisation
    row["choice"] = vars(scheduler.pacing.choice)
    row["postponed"] = vars(scheduler.postponed)
    if args.long_prompt:
        row["long_prompt_first_token_s"] = simulation.long_wait
        row["meanwhile_ms_max"] = 1e3 * max(simulation.gaps_meanwhile, default=0.0)
    return row


def numbers(measured: Measured) -> Row:
    """The figures of a phase."""
    busy = measured.utilisation
    gaps = [1e3 * gap for gap in measured.gaps]
    return {
        "groups": measured.mean_groups,
        "busy_percent": 100 * sum(busy) / len(busy),
        "least_busy_percent": 100 * min(busy),
        "tokens_per_s": measured.tokens_per_s,
        **percentiles([1e3 * wait for wait in measured.first_tokens], "first_token_ms"),
        **percentiles(gaps, "inter_token_ms"),
        "inter_token_ms_max": max(gaps, default=None),
        "moves_per_1000_tokens": 1e3 * measured.moves / max(1, measured.tokens),
    }


def one_round(args: argparse.Namespace, number: int) -> list[Row]:
    """Every ring under every load."""
    rows = []
    for stages in args.stages:
        for streams in args.load:
            rows.append(simulate(args, stages, streams, args.seed + number))
            say(f"{stages} stages, {streams} streams: {rows[-1]['busy_percent']:.1f} % busy")
    return rows


def report(args: argparse.Namespace, rows: Sequence[Row], of_what: str) -> None:
    """Show and write the results."""
    summary = medians_by(rows, "stages", "streams")
    columns = list(COLUMNS)
    if args.requests:
        columns += [
            Column("inter_token_ms_p95", "p95"),
            Column("first_token_ms_p50", "first token ms p50"),
            Column("first_token_ms_p95", "p95"),
        ]
    if args.long_prompt:
        columns += [
            Column("meanwhile_ms_max", "max during prefill"),
            Column("long_prompt_first_token_s", "its first token, s", ".2f"),
        ]
    print(f"\nSimulated; {of_what}.\n")
    print(table(columns, summary))
    write_json(args, benchmark="simulate", summary=summary, rounds=rows)
    if args.plot:
        draw(summary, args.plot)


def draw(summary: Sequence[Row], path: Path) -> None:
    """How busy the stages are, and the share of the ideal rate, over the streams; a line for each ring."""
    panels = {
        "busy_percent": "busy, mean of the stages, %",
        "share_percent": "of the ideal rate, %",
    }
    figure = new_figure(len(panels))
    for axes, (key, title) in zip(figure.axes, panels.items(), strict=True):
        for stages in dict.fromkeys(row["stages"] for row in summary):
            own = [row for row in summary if row["stages"] == stages]
            label = f"{stages:.0f} stages"
            axes.plot([r["streams"] for r in own], [r[key] for r in own], marker="o", label=label)
        axes.set(title=title, xlabel="streams", ylim=(0, 105), xscale="log")
    save_figure(figure, path)


# real ranks


def real_round(args: argparse.Namespace, scratch: Path, number: int) -> list[Row]:
    """One start of the ranks: every load measured, then simulated with the times of all loads."""
    say(f"round {number}: two ranks under {len(args.load)} loads")
    # The first load compiles, fills pools and is not compared.
    streams = [max(args.load), *args.load]
    loads = [RealLoad(n, args.requests * n, args.prompt, args.output) for n in streams]
    results = measure(setup_of(args), Path(__file__).resolve(), 2, loads, scratch)[1:]
    found = measurement_of(results, args.latency)
    return [compare(args, result, found) for result in results]


def compare(args: argparse.Namespace, result: RealResult, found: Measurement) -> Row:
    """Simulate one load as it was run."""
    load = result.load
    ranks = len(found.stages)
    stages = Stages(found.ring(ranks), found.network)
    phase = Phase(load.streams, -(-load.requests * load.output // load.streams))
    simulated = Load(
        (phase,), load.prompt, load.output, stagger=False, requests=load.requests, warm_up=0.0
    )
    simulation = Simulation(Scheduler(limits_of(args, ranks)), stages, simulated)
    simulation.run()
    measured = result.tokens / result.seconds
    predicted = simulation.total_tokens / simulation.now
    return {
        "streams": load.streams,
        "batch": sum(size for size, _ in result.decode) / len(result.decode),
        "measured": measured,
        "predicted": predicted,
        "off_percent": 100 * ((ratio(predicted, measured) or 0.0) - 1),
        "times": msgspec.to_builtins(found),
    }


def report_real(args: argparse.Namespace, rows: Sequence[Row], of_what: str) -> None:
    """Show and write the results; the JSON can be given to --measure."""
    summary = medians_by(rows, "streams")
    print(f"\nTwo ranks, {args.prompt} + {args.output} tokens; {of_what}.\n")
    print(table(REAL_COLUMNS, summary))
    write_json(args, benchmark="simulate-real", summary=summary, rounds=rows, **rows[-1]["times"])
    if args.plot:
        figure = new_figure(1)
        axes = figure.axes[0]
        for key in ("measured", "predicted"):
            x = [row["streams"] for row in summary]
            axes.plot(x, [row[key] for row in summary], marker="o", label=key)
        axes.set(title="output tokens/s, 2 ranks", xlabel="streams", ylim=(0, None))
        save_figure(figure, args.plot)


def parse_arguments() -> argparse.Namespace:
    parser = new_parser(__doc__, rounds=1)
    load = parser.add_argument_group("load")
    load.add_argument("--stages", type=positive, nargs="+", default=[1, 2, 4, 8, 16, 32, 64])
    load.add_argument("--load", type=positive, nargs="+", metavar="N", help="streams at a time")
    load.add_argument("--prompt", type=positive, help="tokens; default: 1, for --real 48")
    load.add_argument("--output", type=positive, help="tokens; default: 1000, for --real 48")
    load.add_argument("--tokens", type=positive, help="simulated, for each stream; default: 400")
    load.add_argument("--requests", type=positive, help="of each stream; for --real by default 3")
    load.add_argument("--long-prompt", type=positive, default=0, help="tokens of one more request")
    load.add_argument("--prefill", type=positive, nargs="+", help="tokens of single prompts")
    load.add_argument("--seed", type=int, default=0, help="of the noise")
    times = parser.add_argument_group("stages, in seconds")
    times.add_argument("--preset", choices=PRESETS, default="compute-bound")
    times.add_argument("--fixed", type=at_least_zero, help="of a decode step")
    times.add_argument("--each", type=at_least_zero, help="for each sequence of it")
    times.add_argument("--prefill-fixed", type=at_least_zero, help="of a prefill chunk")
    times.add_argument("--prefill-each", type=at_least_zero, help="for each token of it")
    times.add_argument("--attention", type=at_least_zero, help="for each pair of tokens in it")
    times.add_argument(
        "--overhead", type=at_least_zero, default=0.0, help="of Python, in each step"
    )
    times.add_argument("--noise", type=at_least_zero, default=0.0, help="share by which times vary")
    times.add_argument(
        "--latency", type=at_least_zero, default=1e-4, help="of a hop; default: 0.0001"
    )
    times.add_argument("--bandwidth", type=above_zero, help="bytes/s of a hop; default: no limit")
    times.add_argument("--token-bytes", type=positive, default=4096, help="of a hidden state")
    times.add_argument("--measure", type=Path, metavar="FILE", help="times that --real has written")
    scheduler = parser.add_argument_group("scheduler")
    scheduler.add_argument("--groups", type=positive, help="micro-batches; default: as it chooses")
    scheduler.add_argument("--max-group", type=positive, default=1 << 20, help="sequences")
    scheduler.add_argument("--chunk", type=positive, help="tokens; default: 512, for --real 128")
    scheduler.add_argument(
        "--bound", type=above_zero, default=1.0, help="on inter-token time, seconds"
    )
    real = parser.add_argument_group("real ranks")
    real.add_argument("--real", action="store_true", help="measure two, and predict them")
    real.add_argument("--rank", nargs=2, help=argparse.SUPPRESS)  # what a rank of --real is told
    add_setup_arguments(parser)
    args = parse(parser)
    args.load = args.load or ([1, 4, 8] if args.real else [1, 8, 64, 256])
    args.prompt = args.prompt or (48 if args.real else 1)
    args.output = args.output or (48 if args.real else 1000)
    args.requests = args.requests or (3 if args.real else None)
    args.chunk = args.chunk or (128 if args.real else 512)
    if args.requests and args.tokens:
        parser.error("--tokens goes neither with --requests nor with --real")
    args.tokens = args.tokens or 400
    if args.tokens < FEWEST_TOKENS:
        parser.error(f"--tokens {args.tokens}: the warm-up alone needs {FEWEST_TOKENS}")
    if args.fixed == 0 and args.each == 0:
        parser.error("--fixed 0 --each 0: a step has to take some time")
    if args.prefill and (args.real or args.plot):
        parser.error("--prefill goes neither with --real nor with --plot")
    if args.requests and args.long_prompt:
        parser.error("--long-prompt goes neither with --requests nor with --real")
    if args.requests and args.prefill:
        parser.error("--prefill sends single prompts: --requests says nothing of them")
    if not (args.real or args.rank) and (args.model or args.settings):
        parser.error("--model and --set are for --real")
    if args.real and args.measure:
        parser.error("--real measures the times that --measure would read")
    return args


def main() -> None:
    args = parse_arguments()
    if args.rank:
        folder, told = args.rank
        serve_rank(folder, told, args.settings)
    elif args.real:
        with scratch_folder() as scratch:
            run_rounds(
                args.rounds,
                lambda number: real_round(args, Path(scratch), number),
                lambda rows, of_what: report_real(args, rows, of_what),
            )
    elif args.prefill:
        run_rounds(
            args.rounds,
            lambda number: prefill_round(args, number),
            lambda rows, of_what: report_prefill(args, rows, of_what),
        )
    else:
        run_rounds(
            args.rounds,
            lambda number: one_round(args, number),
            lambda rows, of_what: report(args, rows, of_what),
        )


if __name__ == "__main__":
    sys.exit(run(main))
