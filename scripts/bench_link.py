#!/usr/bin/env python3
"""Measure each hop of the ring, run through mlx.launch: latency and bandwidth, frames and tensors apart.

    python scripts/bench_link.py
    python scripts/bench_link.py --hostfile hostfile.json --count 200 --rounds 3

A frame goes over the frame link and is answered by the smallest one.  Half of the time that the smallest one
takes there and back counts for the answer, the rest for the frame.  A tensor is announced by a frame, sent
through mx.distributed, and answered by a frame once it is there; without the time of a frame there and back,
that is the tensor's.  Hops are measured one after the other.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from benchlib.hop import FLOAT_BYTES, Exchange, HopPlan, measure_all
from benchlib.jobs import print_result, run_job
from benchlib.options import new_parser, parse, positive, run, run_rounds, say
from benchlib.ports import free_ports
from benchlib.report import Column, new_figure, save_figure, table, write_json
from benchlib.stats import medians_by, percentiles
from benchlib.targets import Setup

DEADLINE = 600.0  # seconds for one round
FRAMES = (1, 32)  # sequences
MICROSECONDS = 1e6

COLUMNS = (
    Column("hop", "hop"),
    Column("kind", "kind"),
    Column("size", "bytes", "d"),
    Column("us_p50", "us p50", ".0f"),
    Column("us_p95", "p95", ".0f"),
    Column("us_p99", "p99", ".0f"),
    Column("mb_per_s", "MB/s", ".0f"),
)


def exchanges(args: argparse.Namespace) -> list[list[Exchange]]:
    """One round: all ranks start, measure and end.  Raises ServerFailed with what they said if they don't."""
    plan = HopPlan(FRAMES, tuple(args.sizes), args.count)
    job = [sys.executable, "-m", "launcher.job"]
    if args.hostfile:
        job += ["--hostfile", str(args.hostfile.resolve())]
    else:
        ports = free_ports(args.ranks)
        job += ["--ranks", str(args.ranks), "--starting-port", str(ports[0])]
    if args.backend:
        job += ["--backend", args.backend]
    plan_text = msgspec.json.encode(plan).decode()
    command = [*job, "--", sys.executable, str(Path(__file__).resolve()), "--hop", plan_text]
    return run_job(command, Setup(Path()).environment(), list[list[Exchange]], DEADLINE)


def rows_of(hops: Sequence[Sequence[Exchange]]) -> list[dict[str, Any]]:
    """A row for each exchange, with one-way times.

    The smallest frame stands for the frames around a tensor: its there-and-back median is taken off.
    """
    rows = []
    for exchanges in hops:
        smallest = min((e for e in exchanges if e.kind == "frame"), key=lambda e: e.size)
        frames = percentiles(smallest.seconds, "s")["s_p50"] or 0.0
        for exchange in exchanges:
            if exchange.kind == "frame":
                one_way = [seconds - frames / 2 for seconds in exchange.seconds]
            else:
                one_way = [seconds - frames for seconds in exchange.seconds]
            rows.append({**_row(exchange, len(hops)), **_numbers(exchange, one_way)})
    return rows


def _row(exchange: Exchange, ranks: int) -> dict[str, Any]:
    after = (exchange.hop + 1) % ranks
    return {
        "hop": f"{exchange.hop} to {after}",
        "kind": exchange.kind,
        "size": exchange.size,
    }


def _numbers(exchange: Exchange, one_way: Sequence[float]) -> dict[str, float | None]:
    times = percentiles([MICROSECONDS * seconds for seconds in one_way], "us")
    typical = times["us_p50"]
    moved = exchange.kind == "tensor" and typical is not None and typical > 0
    # Bytes in a microsecond are megabytes in a second.
    return {**times, "mb_per_s": exchange.size / typical if moved and typical else None}


def one_round(args: argparse.Namespace, number: int) -> list[dict[str, Any]]:
    """One start of the ring."""
    say(f"round {number}")
    return rows_of(exchanges(args))


def report(args: argparse.Namespace, rows: Sequence[dict[str, Any]], of_what: str) -> None:
    """Show and write the results."""
    summary = medians_by(rows, "hop", "kind", "size")
    print(f"\nOne way, in microseconds; {of_what}.\n")
    print(table(COLUMNS, summary))
    write_json(args, benchmark="link", summary=summary, rounds=rows)
    if args.plot:
        draw(summary, args.plot)


def draw(summary: Sequence[dict[str, Any]], path: Path) -> None:
    """Time and bandwidth over the size of tensors, a line for each hop."""
    figure = new_figure(2)
    panels = {"us_p50": "time of a tensor, p50, us", "mb_per_s": "bandwidth, MB/s"}
    for axes, (key, title) in zip(figure.axes, panels.items(), strict=True):
        for hop in dict.fromkeys(row["hop"] for row in summary):
            own = [r for r in summary if r["hop"] == hop and r["kind"] == "tensor" and r[key]]
            axes.plot([r["size"] for r in own], [r[key] for r in own], marker="o", label=hop)
        axes.set(title=title, xlabel="bytes", xscale="log", yscale="log")
    save_figure(figure, path)


def parse_arguments() -> argparse.Namespace:
    parser = new_parser(__doc__, rounds=1)
    parser.add_argument("--hostfile", type=Path, help="the ring, as mlx.launch reads it")
    parser.add_argument("--ranks", type=positive, default=2, help="ranks on this machine")
    parser.add_argument("--backend", help="default: the hostfile's, else ring")
    parser.add_argument("--count", type=positive, default=50, help="exchanges of each size")
    parser.add_argument(
        "--sizes",
        type=positive,
        nargs="+",
        default=[4 << 10, 16 << 10, 64 << 10, 256 << 10, 1 << 20, 4 << 20, 16 << 20],
        help="bytes of the tensors; default: 4 KiB to 16 MiB",
    )
    parser.add_argument("--hop", help=argparse.SUPPRESS)  # what a rank of the job is told
    args = parse(parser)
    if args.ranks < 2 and not args.hostfile:
        parser.error("--ranks must be at least 2: one rank has no hop")
    if any(size % FLOAT_BYTES for size in args.sizes):
        parser.error(f"--sizes must be multiples of {FLOAT_BYTES}: tensors are float32")
    return args


def main() -> None:
    args = parse_arguments()
    if not args.hop:
        run_rounds(args.rounds, partial(one_round, args), partial(report, args))
        return
    hops = measure_all(msgspec.json.decode(args.hop, type=HopPlan))
    if hops is not None:
        print_result(hops)


if __name__ == "__main__":
    sys.exit(run(main))
