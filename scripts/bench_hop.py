#!/usr/bin/env python3
"""Measure what each hop adds to the time of a token of a single stream, and where a step is when.

    python scripts/bench_hop.py --model FOLDER --ranks 1 2 3 --rounds 3

All ranks run on this machine.  The time of a token is the one from step to step on rank 0; what two and more
ranks take longer than one, over the number of hops, is the time of a hop.  What the layers take may differ by
more than that from run to run, so that it is looked at without them, too: `between` is the time of a step in
which no stage computes it, from the end of `compute` on one stage to its begin on the next, and from the last
one until rank 0 has the result.  Stages build their graphs while those before them compute, and the first one
while it waits for the result before.  Below, the way of a step: when each stage began and ended what it did for
it, counted from when the scheduler began to choose it.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections import Counter
from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path

from benchlib.options import Row, add_setup_arguments, new_parser, parse, positive, run, run_rounds
from benchlib.report import Column, table, write_json
from benchlib.servers import ServerFailed, scratch_folder
from benchlib.stats import medians_by
from timeline import Event, read, record

WARM_UP = 0.2  # of the steps, which are left out

COLUMNS = (
    Column("ranks", "ranks", "d"),
    Column("token_us", "token, us", ".0f"),
    Column("hop_us", "each hop, us", ".0f"),
    Column("between_us", "between, us", ".0f"),
    Column("between_hop_us", "each hop, us", ".0f"),
)
WAY = (
    Column("ranks", "ranks", "d"),
    Column("stage", "stage", "d"),
    Column("activity", "activity"),
    Column("begin_us", "from, us", ".0f"),
    Column("end_us", "to, us", ".0f"),
)


def steps_of(events: Sequence[Event]) -> list[list[Event]]:
    """The spans of each step that every rank took part in, without the first ones, in the order of time."""
    spans = [event for event in events if event["ph"] == "X"]
    ranks = {span["pid"] for span in spans}
    steps: dict[int, list[Event]] = {}
    for span in sorted(spans, key=lambda span: float(span["ts"])):
        steps.setdefault(span["args"]["step"], []).append(span)
    computed = [
        spans
        for _, spans in sorted(steps.items())
        if {span["pid"] for span in spans if span["name"] == "compute"} == ranks
    ]
    if len(computed) < 10:
        raise ServerFailed(
            f"only {len(computed)} steps went through all ranks: ask for more tokens"
        )
    return computed[int(WARM_UP * len(computed)) :]


def begin_of(spans: Sequence[Event]) -> float:
    """When the scheduler began to choose the step; rank 0 may have built its graph before."""
    return next(float(span["ts"]) for span in spans if span["name"] == "choose")


def token_us(steps: Sequence[Sequence[Event]]) -> float:
    """Median time from one step to the next."""
    begins = [begin_of(spans) for spans in steps]
    return statistics.median(after - before for before, after in pairwise(begins))


def way_of(steps: Sequence[Sequence[Event]]) -> list[Row]:
    """When each stage did what, in the order of time: medians."""
    times: dict[tuple[int, str, int], list[tuple[float, float]]] = {}
    for spans in steps:
        origin, seen = begin_of(spans), Counter[tuple[int, str]]()
        for span in spans:
            kind = (span["pid"], span["name"])
            begin = span["ts"] - origin
            times.setdefault((*kind, seen[kind]), []).append((begin, begin + span["dur"]))
            seen[kind] += 1
    rows = [
        {
            "stage": stage,
            "activity": activity,
            "begin_us": statistics.median(begin for begin, _ in found),
            "end_us": statistics.median(end for _, end in found),
        }
        for (stage, activity, _), found in times.items()
        if len(found) > len(steps) / 2
    ]
    return sorted(rows, key=lambda row: float(row["begin_us"]))


def between_us(way: Sequence[Row]) -> float:
    """Time in which a step is on its way from stage to stage, and back to rank 0."""
    computes = sorted(
        (row for row in way if row["activity"] == "compute"), key=lambda row: int(row["stage"])
    )
    begins = [row["begin_us"] for row in computes[1:]]
    begins.append(next(row["begin_us"] for row in way if row["activity"] == "absorb"))
    return float(sum(begins) - sum(row["end_us"] for row in computes))


def one_round(args: argparse.Namespace, number: int) -> list[Row]:
    """Every number of ranks once."""
    rows: list[Row] = []
    for ranks in args.ranks:
        with scratch_folder() as folder:
            record(argparse.Namespace(**{**vars(args), "ranks": ranks}), Path(folder))
            steps = steps_of(read(Path(folder)))
        rows.append({"ranks": ranks, "round": number, "token_us": token_us(steps)})
        rows[-1]["way"] = way = way_of(steps)
        rows[-1]["between_us"] = between_us(way)
    return rows


def report(args: argparse.Namespace, rows: list[Row], of_what: str) -> None:
    """Show and write the results."""
    summary = medians_by(rows, "ranks")
    alone = next((row for row in summary if row["ranks"] == 1), None)
    for row in summary:
        if alone is not None and row["ranks"] > 1:
            hops = row["ranks"] - 1
            row["hop_us"] = (row["token_us"] - alone["token_us"]) / hops
            row["between_hop_us"] = (row["between_us"] - alone["between_us"]) / hops
    print(
        f"\nOne stream; {of_what}.\n\n{table(COLUMNS, summary)}\n\nThe way of a step, last round:\n"
    )
    last = {row["ranks"]: row["way"] for row in rows}
    print(table(WAY, [{"ranks": ranks, **step} for ranks, way in last.items() for step in way]))
    write_json(args, benchmark="hop", summary=summary, rounds=rows)


def main() -> None:
    parser = new_parser(__doc__, rounds=1)
    parser.add_argument(
        "--ranks", type=positive, nargs="+", default=[1, 2, 3], help="default: 1 2 3"
    )
    parser.add_argument("--prompt", type=positive, default=32, help="tokens; default: 32")
    parser.add_argument("--tokens", type=positive, default=200, help="output; default: 200")
    add_setup_arguments(parser)
    args = parse(parser)
    args.streams = 1
    run_rounds(args.rounds, partial(one_round, args), partial(report, args))


if __name__ == "__main__":
    sys.exit(run(main))
