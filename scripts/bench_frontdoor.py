#!/usr/bin/env python3
"""Measure what the launcher's front door adds: time to the first token, how late tokens are, and CPU time.

    python scripts/bench_frontdoor.py
    python scripts/bench_frontdoor.py --active 50 --rate 20 --tokens 200

Rank 0's HTTP side is the real one over an engine that makes tokens by the clock.  The same streams are read
from it directly, and through a front door that keeps the journal; each is a process of its own.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from functools import partial
from typing import Any

import psutil

from bench_streams import active_streams, cpu_seconds, listening
from benchlib.options import new_parser, parse, positive, run, run_rounds, say
from benchlib.ports import free_ports
from benchlib.report import Column, table, write_json
from benchlib.stats import medians_by
from server import descriptors

COLUMNS = (
    Column("how", "how"),
    Column("what", "what"),
    Column("streams", "streams", ".0f"),
    Column("first", "first token, ms", ".1f"),
    Column("late50", "late p50, ms", ".2f"),
    Column("late99", "late p99, ms", ".2f"),
    Column("rate", "tokens/s", ".0f"),
    Column("cpu", "rank 0: CPU us per token", ".0f"),
    Column("door", "front door: CPU us per token", ".0f"),
)


async def measure(
    args: argparse.Namespace, rank0: psutil.Process, door: psutil.Process, ports: list[int]
) -> list[dict[str, Any]]:
    rows = []
    for how, port in zip(("direct", "through the front door"), ports, strict=True):
        await active_streams(rank0, port, 4, 20, 0)  # warm
        for streams, rate in ((1, args.rate), (args.active, args.rate), (args.active, 0)):
            say(f"{how}: {streams} streams")
            before = cpu_seconds(door)
            row = await active_streams(rank0, port, streams, args.tokens, rate)
            used = 1e6 * (cpu_seconds(door) - before) / (streams * args.tokens)
            rows.append({"how": how, **row, "door": used})
    return rows


def one_round(args: argparse.Namespace, number: int) -> list[dict[str, Any]]:
    ports = free_ports(2)
    with (
        listening("gateway", "gateway", ports[0]) as rank0,
        listening("front door", "door", ports[1], ports[0]) as door,
    ):
        return asyncio.run(measure(args, rank0, door, ports))


def report(args: argparse.Namespace, rows: list[dict[str, Any]], of_what: str) -> None:
    summary = medians_by(rows, "how", "what", "streams")
    print(f"\n{args.tokens} tokens for each stream; {of_what}.\n")
    print(table(COLUMNS, summary))
    write_json(args, rows=rows, summary=summary)


def main() -> None:
    parser = new_parser(__doc__, rounds=1)
    parser.add_argument("--active", type=positive, default=50, help="streams; default: 50")
    parser.add_argument("--tokens", type=positive, default=100, help="of each; default: 100")
    parser.add_argument("--rate", type=positive, default=10, help="tokens/s of each; default: 10")
    args = parse(parser)
    descriptors.raise_limit()
    run_rounds(args.rounds, partial(one_round, args), partial(report, args))


if __name__ == "__main__":
    sys.exit(run(main))
