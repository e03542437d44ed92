#!/usr/bin/env python3
"""Measure an OpenAI-compatible server under load: rates, time to first token, inter-token latency, failures.

    python scripts/bench_serving.py                                  # this project, 2 ranks, closed loop
    python scripts/bench_serving.py --compare --ranks 2 --concurrency 1 4 8 16 32 --rounds 5
    python scripts/bench_serving.py --url http://127.0.0.1:8000 --rate 0.5 1 2 --requests 60

Closed loop (--concurrency): that many requests at a time, each one that ends is followed by the next.  Open
loop (--rate): Poisson arrivals per second that do not wait; latency counts from when a request was due.
Rates are what whole requests brought, over the wall time of the level.  Every prompt is used once in each
round and differs from its first words on, so that no server's prefix cache helps.  Greedy decoding; all
servers of a round get the same requests.  With --compare one server at a time runs, all in each round.
Inter-token latency is the time between two pieces of text.  `short` counts requests that ended at an
end-of-sequence token although they asked to ignore it.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from benchlib.client import Client, Request
from benchlib.load import Round, closed_loop, open_loop, warm_up
from benchlib.options import (
    add_setup_arguments,
    new_parser,
    parse,
    positive,
    run,
    run_rounds,
    say,
    setup_of,
)
from benchlib.prompts import PromptMaker
from benchlib.report import Column, new_figure, save_figure, table, write_json
from benchlib.servers import External, LocalServer, Server, scratch_folder
from benchlib.stats import median, medians_by, ratio
from benchlib.targets import MLX_LM, MLX_LM_PIPELINE, OURS, Target

COLUMNS = (
    Column("level", "load"),
    Column("server", "server"),
    Column("requests_per_s", "req/s", ".2f"),
    Column("tokens_per_s", "tok/s"),
    Column("first_token_ms_p50", "first token p50", ".0f"),
    Column("first_token_ms_p95", "p95", ".0f"),
    Column("first_token_ms_p99", "p99", ".0f"),
    Column("inter_token_ms_p50", "inter-token p50"),
    Column("inter_token_ms_p95", "p95"),
    Column("inter_token_ms_p99", "p99"),
    Column("requests", "requests", ".0f"),
    Column("failed", "failed", ".0f"),
    Column("short", "short", ".0f"),
)


@dataclass(frozen=True)
class Level:
    """A load: `concurrency` requests at a time, or `rate` arrivals per second."""

    concurrency: int = 0
    rate: float = 0.0

    def __str__(self) -> str:
        return f"{self.rate:g}/s" if self.rate else f"{self.concurrency} at a time"

    async def run(
        self, server: Server, requests: Sequence[Request], seed: int, chat: bool
    ) -> Round:
        """Put the load on a server."""
        async with Client(server.url, server.model, chat) as client:
            if self.rate:
                return await open_loop(client, requests, self.rate, seed)
            return await closed_loop(client, requests, self.concurrency)


@dataclass(frozen=True)
class Workload:
    """The levels, and their requests: the same for every server."""

    args: argparse.Namespace
    prompts: PromptMaker

    @property
    def levels(self) -> list[Level]:
        """As asked for, closed ones first."""
        args = self.args
        if args.concurrency is None and args.rate is None:
            return [Level(concurrency=count) for count in (1, 4, 8)]
        closed = [Level(concurrency=count) for count in args.concurrency or ()]
        return closed + [Level(rate=rate) for rate in args.rate or ()]

    def requests(self, level: Level, seed: int) -> list[Request]:
        """--requests of them; as a default two for each stream, or 20 arrivals."""
        args = self.args
        count = args.requests or (20 if level.rate else 2 * level.concurrency)
        return [
            Request(self.prompts.prompt(1000 * seed + i, args.prompt_tokens), args.output_tokens)
            for i in range(count)
        ]


def measure(server: Server, workload: Workload, number: int) -> Iterator[dict[str, Any]]:
    """One round of all levels on a running server."""
    args = workload.args
    for position, level in enumerate(workload.levels):
        seed = args.seed + 100 * number + position
        requests = workload.requests(level, seed)
        restart_if_broken(server)
        asyncio.run(warm_up(server, args.chat))
        done = asyncio.run(level.run(server, requests, seed, args.chat))
        row = {"level": str(level), "server": server.label, **done.summary()}
        say(f"round {number}  {server.label}  {level}: {row['tokens_per_s']:.1f} tok/s")
        for error, count in done.errors.items():
            say(f"  {count} failed: {error}")
        yield {**row, "errors": done.errors}


def restart_if_broken(server: Server) -> None:
    """What one level broke must not count against the next."""
    if isinstance(server, LocalServer) and not server.is_healthy():
        say(f"  {server.label} is down and is started again")
        server.stop()
        server.start()


def targets_of(args: argparse.Namespace) -> list[Target]:
    """The servers to start."""
    if args.targets:
        return list(args.targets)
    targets = [Target(OURS, args.ranks)]
    if args.compare:
        targets += [Target(MLX_LM), Target(MLX_LM_PIPELINE, max(args.ranks, 2))]
    return targets


def rounds_of(args: argparse.Namespace, scratch: Path) -> Callable[[int], list[dict[str, Any]]]:
    """What makes one round; within it the servers run one after the other."""
    if args.url:
        prompts = PromptMaker.of_model(args.model) if args.model else PromptMaker()
        external, workload = External(args.url, args.served_model), Workload(args, prompts)
        return lambda number: list(measure(external, workload, number))
    setup = setup_of(args)
    workload = Workload(args, PromptMaker.of_model(setup.model))

    def one_round(number: int) -> list[dict[str, Any]]:
        rows = []
        for target in targets_of(args):
            with setup.server(target, scratch) as server:
                rows += list(measure(server, workload, number))
        return rows

    return one_round


def summarize(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Medians over the rounds, but failed and short requests summed up.

    `ratio`: output rate of the level's first server to this one's, median of the rounds.
    """
    summary = medians_by(rows, "level", "server")
    for line in summary:
        own = [row for row in rows if same_line(row, line)]
        for key in ("requests", "failed", "short"):
            line[key] = sum(row[key] for row in own)
        first = next(other for other in summary if other["level"] == line["level"])
        reference = [row for row in rows if same_line(row, first)]
        line["ratio"] = median(
            ratio(theirs["tokens_per_s"], row["tokens_per_s"])
            for theirs, row in zip(reference, own, strict=True)
        )
    return summary


def same_line(row: dict[str, Any], line: dict[str, Any]) -> bool:
    """Whether a row of one round belongs to a line of the table."""
    return bool(row["level"] == line["level"] and row["server"] == line["server"])


def report(args: argparse.Namespace, rows: Sequence[dict[str, Any]], of_what: str) -> None:
    """Show and write the results."""
    summary = summarize(rows)
    columns = list(COLUMNS)
    several = len({row["server"] for row in summary}) > 1
    if several:
        columns.append(Column("ratio", "ratio", ".2f"))
    print(f"\nLatencies in ms; {of_what}.\n")
    print(table(columns, summary))
    if several:
        print(f"\nratio: tok/s of {summary[0]['server']} to those of this line's server")
    write_json(args, benchmark="serving", summary=summary, rounds=rows)
    if args.plot:
        draw(summary, args.plot)


def draw(summary: Sequence[dict[str, Any]], path: Path) -> None:
    """Output rate and latencies over the levels, a line for each server."""
    panels = {
        "tokens_per_s": "output tokens/s",
        "first_token_ms_p50": "time to first token, p50, ms",
        "inter_token_ms_p95": "inter-token latency, p95, ms",
    }
    figure = new_figure(len(panels))
    for axes, (key, title) in zip(figure.axes, panels.items(), strict=True):
        for name in dict.fromkeys(row["server"] for row in summary):
            own = [row for row in summary if row["server"] == name and row[key] is not None]
            axes.plot([r["level"] for r in own], [r[key] for r in own], marker="o", label=name)
        axes.set(title=title, xlabel="load", ylim=(0, None))
        axes.tick_params(axis="x", labelrotation=30)
    save_figure(figure, path)


def parse_arguments() -> argparse.Namespace:
    parser = new_parser(__doc__, rounds=1)
    load = parser.add_argument_group("load")
    load.add_argument("--concurrency", type=positive, nargs="+", metavar="N", help="closed loop")
    load.add_argument("--rate", type=float, nargs="+", metavar="R", help="open loop, requests/s")
    load.add_argument("--requests", type=positive, help="per level; default: 2 per stream, or 20")
    load.add_argument("--prompt-tokens", type=positive, default=48)
    load.add_argument("--output-tokens", type=positive, default=48)
    load.add_argument("--chat", action="store_true", help="use Chat Completions")
    load.add_argument("--seed", type=int, default=0, help="of prompts and arrivals")
    where = parser.add_argument_group("what to measure")
    where.add_argument("--url", help="a running server, in place of starting any")
    where.add_argument("--served-model", help="its model's name; default: the first it lists")
    where.add_argument("--ranks", type=positive, default=2)
    where.add_argument(
        "--compare",
        action="store_true",
        help="also start mlx_lm.server, in one process and with --pipeline over the same ranks",
    )
    where.add_argument(
        "--targets", nargs="+", type=Target.parse, help="instead: ours:N mlx_lm mlx_lm_pipeline:N"
    )
    add_setup_arguments(parser, mlx_lm_ranks=True)
    args = parse(parser)
    if any(rate <= 0 for rate in args.rate or ()):
        parser.error("--rate must be above 0")
    if args.url and (args.compare or args.targets):
        parser.error("--url measures one server: --compare and --targets start their own")
    return args


def main() -> None:
    args = parse_arguments()
    with scratch_folder() as scratch:
        one_round = rounds_of(args, Path(scratch))
        run_rounds(args.rounds, one_round, partial(report, args))


if __name__ == "__main__":
    sys.exit(run(main))
