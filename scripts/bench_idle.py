#!/usr/bin/env python3
"""Measure what an idle server costs: CPU seconds per second of every process, mlx.launch included.

    python scripts/bench_idle.py
    python scripts/bench_idle.py --targets supervised:3 mlx_lm mlx_lm_pipeline:3 --window 30 --rounds 3

The server has answered a request before, so that it is idle and not just started.  1.000 is one whole core.
`starters` is what the launcher and mlx.launch use together.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import psutil

from benchlib.load import warm_up
from benchlib.options import add_setup_arguments, new_parser, parse, run, run_rounds, say, setup_of
from benchlib.report import Column, new_figure, save_figure, table, write_json
from benchlib.servers import LocalServer, role, scratch_folder
from benchlib.stats import medians_by
from benchlib.targets import Setup, Target

COLUMNS = (
    Column("server", "server"),
    Column("process", "process"),
    Column("cores", "CPU s per s", ".4f"),
)
TOTAL, STARTERS = "all", "starters"


def cpu_seconds(process: psutil.Process) -> float:
    """User and system time of one process, without its children's."""
    times = process.cpu_times()
    return float(times.user + times.system)


def measure(server: LocalServer, window: float) -> list[dict[str, Any]]:
    """CPU use of each process over `window` seconds.  Raises ServerFailed if one ends meanwhile."""
    processes = server.processes()
    try:
        started = time.perf_counter()
        before = [cpu_seconds(process) for process in processes]
        time.sleep(window)
        after = [cpu_seconds(process) for process in processes]
        seconds = time.perf_counter() - started
        roles = [role(process) for process in processes]
    except psutil.NoSuchProcess as error:
        raise server.failed(f"process {error.pid} ended while it was idle") from error
    used = [(b - a) / seconds for a, b in zip(before, after, strict=True)]
    rows = [
        {"server": server.label, "process": name, "cores": cores}
        for name, cores in sorted(zip(roles, used, strict=True))
    ]
    starting = [
        c for name, c in zip(roles, used, strict=True) if name in ("launcher", "mlx.launch")
    ]
    sums = {STARTERS: sum(starting), TOTAL: sum(used)}
    return rows + [{"server": server.label, "process": n, "cores": c} for n, c in sums.items()]


def one_round(
    args: argparse.Namespace, setup: Setup, scratch: Path, number: int
) -> list[dict[str, Any]]:
    """All servers, one after the other."""
    rows = []
    for target in args.targets:
        with setup.server(target, scratch) as server:
            asyncio.run(warm_up(server))
            say(f"round {number}  {server.label}: idle for {args.window:g} s")
            rows += measure(server, args.window)
    return rows


def report(args: argparse.Namespace, rows: Sequence[dict[str, Any]], of_what: str) -> None:
    """Show and write the results."""
    summary = medians_by(rows, "server", "process")
    print(f"\nIdle for {args.window:g} s; {of_what}.\n")
    print(table(COLUMNS, summary))
    write_json(args, benchmark="idle", summary=summary, rounds=rows)
    if args.plot:
        draw(summary, args.plot)


def draw(summary: Sequence[dict[str, Any]], path: Path) -> None:
    """A stacked bar for each server, a colour for each kind of process."""
    figure = new_figure(1)
    axes = figure.axes[0]
    bottom = dict.fromkeys((row["server"] for row in summary), 0.0)
    processes = dict.fromkeys(row["process"] for row in summary)
    for process in [name for name in processes if name not in (TOTAL, STARTERS)]:
        own = [row for row in summary if row["process"] == process]
        names, heights = [row["server"] for row in own], [row["cores"] for row in own]
        axes.bar(names, heights, bottom=[bottom[name] for name in names], label=process)
        for name, height in zip(names, heights, strict=True):
            bottom[name] += height
    axes.set(title="idle", ylabel="CPU seconds per second")
    save_figure(figure, path)


def parse_arguments() -> argparse.Namespace:
    parser = new_parser(__doc__, rounds=1)
    parser.add_argument("--window", type=float, default=10.0, help="seconds; default: 10")
    parser.add_argument(
        "--targets",
        nargs="+",
        type=Target.parse,
        default=[Target.parse("supervised:3"), Target.parse("mlx_lm_pipeline:3")],
        help="supervised:N, ours:N (without its launcher), mlx_lm, mlx_lm_pipeline:N; default: supervised:3"
        " mlx_lm_pipeline:3",
    )
    add_setup_arguments(parser, mlx_lm_ranks=True)
    args = parse(parser)
    if args.window <= 0:
        parser.error("--window must be above 0")
    return args


def main() -> None:
    args = parse_arguments()
    setup = setup_of(args)
    with scratch_folder() as scratch:
        run_rounds(
            args.rounds, partial(one_round, args, setup, Path(scratch)), partial(report, args)
        )


if __name__ == "__main__":
    sys.exit(run(main))
