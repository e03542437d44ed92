#!/usr/bin/env python3
"""What ranks on one machine take from each other: one chunk of prefill, computed by more and more of them.

    python scripts/bench_neighbours.py --model FOLDER --layers 4 --processes 1 4 8 --tokens 16 64 --behind 2000

Each process has the first layers of the model for itself, and computes the same chunk again and again; nothing
is sent.  What a chunk takes longer with more of them at work is the machine's: its memory, caches, clock and
hardware threads.  `CPU` is the processor time of a chunk, `faults` are the pages that it asked for anew, `times
fewest` compares with the fewest processes that were asked for.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import sys
import time
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from queue import Empty
from typing import Any

import mlx.core as mx

from benchlib.options import Row, new_parser, parse, positive, run, run_rounds
from benchlib.report import Column, table, write_json
from benchlib.servers import ServerFailed
from benchlib.stats import medians_by
from pipeline.checkpoint import Checkpoint
from pipeline.demo_model import ensure_demo_model
from pipeline.errors import ModelError
from pipeline.split import Message

FEED = 128  # tokens of a chunk of what is before
DEADLINE = 300.0  # seconds in which all have come as far as any

COLUMNS = (
    Column("tokens", "tokens", "d"),
    Column("processes", "processes", "d"),
    Column("chunk_ms", "a chunk, ms"),
    Column("token_us", "a token, us", ".0f"),
    Column("slowest_ms", "slowest process, ms"),
    Column("cpu_ms", "CPU, ms"),
    Column("faults", "faults", ".0f"),
    Column("inflation", "times fewest", ".2f"),
)


@dataclass(frozen=True)
class Plan:
    """What each process does."""

    model: Path
    layers: int
    behind: int
    seconds: float
    turns: tuple[
        tuple[int, int], ...
    ]  # tokens of a chunk, and processes at work; one after the other


class Chunks:
    """A stage with `behind` tokens in its caches."""

    def __init__(self, plan: Plan) -> None:
        self._stage = Checkpoint.open(plan.model).load_stage(0, plan.layers)
        self._caches = self._stage.make_cache()
        for start in range(0, plan.behind, FEED):
            self._run(min(FEED, plan.behind - start))

    def once(self, tokens: int) -> None:
        """One chunk, of which nothing stays."""
        self._run(tokens)
        for cache in self._caches:
            cache.trim(tokens)

    def _run(self, tokens: int) -> None:
        output = self._stage(mx.arange(tokens, dtype=mx.int32)[None] % 1000, self._caches)
        tree = output.tree if isinstance(output, Message) else output
        mx.eval(tree, [cache.state for cache in self._caches])


def work(number: int, plan: Plan, barrier: Any, results: Any) -> None:
    """One process, which works or waits in each turn."""
    chunks = Chunks(plan)
    for turn in plan.turns:
        tokens, count = turn
        barrier.wait(DEADLINE)
        found = measured(chunks, tokens, plan.seconds) if number < count else None
        barrier.wait(DEADLINE)
        results.put((turn, found))


def measured(chunks: Chunks, tokens: int, seconds: float) -> tuple[float, float, float]:
    """Median seconds of a chunk, and what it takes on the average: CPU seconds and page faults."""
    chunks.once(tokens)
    times: list[float] = []
    cpu, faults = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    until = time.perf_counter() + seconds
    while (began := time.perf_counter()) < until:
        chunks.once(tokens)
        times.append(time.perf_counter() - began)
    cpu = time.process_time() - cpu
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults
    return statistics.median(times), cpu / len(times), faults / len(times)


def one_round(args: argparse.Namespace, number: int) -> list[Row]:
    """All counts, with the same processes."""
    model = args.model.resolve() if args.model else ensure_demo_model()
    layers = Checkpoint.open(model).blueprint().num_layers
    if args.layers > layers:
        raise ModelError(f"--layers {args.layers}: {model} has only {layers} layers")
    turns = tuple((tokens, count) for tokens in args.tokens for count in args.processes)
    plan = Plan(model, args.layers, args.behind, args.seconds, turns)
    context = get_context("spawn")
    most = max(args.processes)
    barrier, results = context.Barrier(most), context.Queue()
    processes = [
        context.Process(target=work, args=(n, plan, barrier, results), daemon=True)
        for n in range(most)
    ]
    for process in processes:
        process.start()
    try:
        found = [results.get(timeout=DEADLINE) for _ in turns for _ in processes]
    except Empty:
        raise ServerFailed(f"the processes said nothing for {DEADLINE:g} s") from None
    for process in processes:
        process.join(DEADLINE)
    return [row(turn, [f for t, f in found if t == turn and f is not None]) for turn in turns]


def row(turn: tuple[int, int], found: list[tuple[float, float, float]]) -> Row:
    tokens, count = turn
    chunk = statistics.median(wall for wall, _, _ in found)
    return {
        "tokens": tokens,
        "processes": count,
        "chunk_ms": 1e3 * chunk,
        "token_us": 1e6 * chunk / tokens,
        "slowest_ms": 1e3 * max(wall for wall, _, _ in found),
        "cpu_ms": 1e3 * statistics.median(cpu for _, cpu, _ in found),
        "faults": statistics.median(faults for _, _, faults in found),
    }


def report(args: argparse.Namespace, rows: list[Row], of_what: str) -> None:
    """Show and write the results."""
    summary = medians_by(rows, "tokens", "processes")
    for line in summary:
        same = [row for row in summary if row["tokens"] == line["tokens"]]
        fewest = min(same, key=lambda row: row["processes"])
        line["inflation"] = line["chunk_ms"] / fewest["chunk_ms"]
    print(
        f"\nChunks behind {args.behind} tokens in {args.layers} layers; {of_what}.\n\n"
        f"{table(COLUMNS, summary)}"
    )
    write_json(args, benchmark="neighbours", summary=summary, rounds=rows)


def main() -> None:
    parser = new_parser(__doc__, rounds=1)
    parser.add_argument("--model", type=Path, help="an MLX model folder; default: the demo model")
    parser.add_argument("--layers", type=positive, default=4, help="the first ones; default: 4")
    parser.add_argument("--processes", type=positive, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--tokens", type=positive, nargs="+", default=[64], help="of a chunk")
    parser.add_argument("--behind", type=positive, default=2000, help="before it; default: 2000")
    parser.add_argument("--seconds", type=float, default=3.0, help="of each count; default: 3")
    args = parse(parser)
    run_rounds(args.rounds, partial(one_round, args), partial(report, args))


if __name__ == "__main__":
    sys.exit(run(main))
