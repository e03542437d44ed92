#!/usr/bin/env python3
"""Measure prefill: time to first token over prompt lengths and ranks, and what a long prompt does to others.

    python scripts/bench_prefill.py
    python scripts/bench_prefill.py --lengths 128 512 1000 2000 4000 --arrival-tokens 4000 --rounds 5

First part: single prompts on an idle server.  Second part (--streams, 0 to leave it out): while so many
streams run, one prompt of --arrival-tokens arrives; their inter-token latency before it, and from then until
its first token (a gap counts as `during` if any of it is).  It is measured with the most ranks and with
mlx_lm.server.  One server at a time runs, all in each round; no two prompts have their beginning in common.
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

from benchlib.client import Client, Outcome, Request
from benchlib.load import warm_up
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
from benchlib.servers import LocalServer, scratch_folder
from benchlib.stats import medians_by, percentiles, ratio
from benchlib.streams import Streams, gaps_around
from benchlib.targets import MLX_LM, OURS, Setup, Target

LENGTHS, ARRIVALS = "lengths", "arrivals"

STREAM_PROMPT_TOKENS = 48
STREAM_TOKENS = 2000  # more than a stream gets to make
STEADY = 16  # arrivals of each stream before the long prompt comes

LENGTH_COLUMNS = (
    Column("server", "server"),
    Column("length", "prompt", ".0f"),
    Column("prompt_tokens", "as served", ".0f"),
    Column("first_token_s", "first token, s", ".2f"),
    Column("tokens_per_s", "prefill tok/s", ".0f"),
    Column("ratio", "time / mlx_lm's", ".2f"),
)
ARRIVAL_COLUMNS = (
    Column("server", "server"),
    Column("first_token_s", "first token of the prompt, s", ".2f"),
    Column("before_ms_p50", "inter-token ms before: p50", ".0f"),
    Column("before_ms_p95", "p95", ".0f"),
    Column("before_ms_max", "max", ".0f"),
    Column("during_ms_p50", "during: p50", ".0f"),
    Column("during_ms_p95", "p95", ".0f"),
    Column("during_ms_max", "max", ".0f"),
)


async def first_token(client: Client, server: LocalServer, request: Request) -> Outcome:
    """Run a request that must succeed.  Raises ServerFailed."""
    outcome = await client.run(request)
    if outcome.error is not None or outcome.first_token is None:
        raise server.failed(f"no first token: {outcome.error or 'no text'}")
    return outcome


async def by_length(
    server: LocalServer, prompts: PromptMaker, lengths: Sequence[int], seed: int
) -> list[dict[str, Any]]:
    """A row for each prompt length."""
    rows = []
    async with Client(server.url, server.model) as client:
        for position, length in enumerate(lengths):
            request = Request(prompts.prompt(seed + position, length), 4)
            outcome = await first_token(client, server, request)
            seconds = outcome.first_token
            rows.append(
                {
                    "server": server.label,
                    "length": length,
                    "prompt_tokens": outcome.prompt_tokens,
                    "first_token_s": seconds,
                    "tokens_per_s": ratio(outcome.prompt_tokens, seconds),
                }
            )
            say(f"  {length} tokens: first token after {seconds:.2f} s")
    return rows


async def arrival(
    server: LocalServer, prompts: PromptMaker, streams: int, tokens: int, seed: int
) -> dict[str, Any]:
    """One prompt of `tokens` tokens arrives among `streams` running streams."""
    requests = [
        Request(prompts.prompt(seed + i, STREAM_PROMPT_TOKENS), STREAM_TOKENS)
        for i in range(streams)
    ]
    long = Request(prompts.prompt(seed + streams, tokens), 4)
    async with Client(server.url, server.model) as client, Streams(client, requests) as running:
        await running.until(lambda stream: len(stream.arrivals) >= STEADY)
        start = time.perf_counter()
        outcome = await first_token(client, server, long)
        end = outcome.arrivals[0]
        # A gap that is still open at the first token counts, and counts in full.
        await running.until(lambda stream: stream.arrivals[-1] >= end)
        parts = [gaps_around(stream.arrivals, start, end) for stream in running.outcomes]
    row = {
        "server": server.label,
        "first_token_s": outcome.first_token,
        **gap_summary("before_ms", [gap for before, _ in parts for gap in before]),
        **gap_summary("during_ms", [gap for _, during in parts for gap in during]),
    }
    say(f"  {tokens} tokens among {streams} streams: longest gap {row['during_ms_max']:.0f} ms")
    return row


def gap_summary(name: str, gaps: Sequence[float]) -> dict[str, float | None]:
    """Percentiles and maximum of gaps in seconds, as milliseconds."""
    values = [1e3 * gap for gap in gaps]
    return {**percentiles(values, name), f"{name}_max": max(values, default=None)}


def measure(
    args: argparse.Namespace, setup: Setup, scratch: Path, number: int
) -> list[dict[str, Any]]:
    """One round over all servers; `part` of a row tells which table it belongs to."""
    prompts = PromptMaker.of_model(setup.model)
    seed = args.seed + 10_000 * number
    targets = [Target(OURS, ranks) for ranks in args.ranks]
    targets += [] if args.no_mlx_lm else [Target(MLX_LM)]
    with_arrival = {Target(OURS, max(args.ranks)), Target(MLX_LM)} if args.streams else set()
    rows: list[dict[str, Any]] = []
    for target in targets:
        with setup.server(target, scratch) as server:
            say(f"round {number}  {server.label}")
            asyncio.run(warm_up(server))
            found = asyncio.run(by_length(server, prompts, args.lengths, seed))
            rows += [{"part": LENGTHS, **row} for row in found]
            if target in with_arrival:
                work = arrival(server, prompts, args.streams, args.arrival_tokens, seed + 1000)
                rows.append({"part": ARRIVALS, **asyncio.run(work)})
    return rows


def add_ratios(rows: Sequence[dict[str, Any]]) -> None:
    """Time to first token relative to mlx_lm's of the same round and length."""
    reference = {
        (row["round"], row["length"]): row["first_token_s"]
        for row in rows
        if row["server"] == "mlx_lm.server"
    }
    for row in rows:
        row["ratio"] = ratio(row["first_token_s"], reference.get((row["round"], row["length"])))


def report(args: argparse.Namespace, rows: Sequence[dict[str, Any]], of_what: str) -> None:
    """Show and write the results."""
    by_length_rows = [row for row in rows if row["part"] == LENGTHS]
    add_ratios(by_length_rows)
    lengths = medians_by(by_length_rows, "server", "length")
    arrivals = medians_by([row for row in rows if row["part"] == ARRIVALS], "server")
    print(f"\nOne prompt on an idle server; {of_what}.\n")
    print(table(LENGTH_COLUMNS, sorted(lengths, key=lambda row: row["length"])))
    if arrivals:
        print(f"\n{args.arrival_tokens} tokens arrive among {args.streams} streams; {of_what}.\n")
        print(table(ARRIVAL_COLUMNS, arrivals))
    write_json(args, benchmark="prefill", lengths=lengths, arrivals=arrivals, rounds=rows)
    if args.plot:
        draw(lengths, args.plot)


def draw(lengths: Sequence[dict[str, Any]], path: Path) -> None:
    """Time to first token and prefill rate over the prompt length."""
    figure = new_figure(2)
    panels = {"first_token_s": "time to first token, s", "tokens_per_s": "prefill tokens/s"}
    for axes, (key, title) in zip(figure.axes, panels.items(), strict=True):
        for name in dict.fromkeys(row["server"] for row in lengths):
            own = [row for row in lengths if row["server"] == name]
            x = [row["prompt_tokens"] for row in own]
            axes.plot(x, [row[key] for row in own], marker="o", label=name)
        axes.set(title=title, xlabel="prompt tokens", xlim=(0, None), ylim=(0, None))
    save_figure(figure, path)


def parse_arguments() -> argparse.Namespace:
    parser = new_parser(__doc__, rounds=1)
    parser.add_argument("--lengths", type=positive, nargs="+", default=[128, 512, 2000])
    parser.add_argument("--ranks", type=positive, nargs="+", default=[1, 2, 3])
    parser.add_argument("--no-mlx-lm", action="store_true", help="leave out mlx_lm.server")
    parser.add_argument("--streams", type=int, default=8, help="default: 8")
    parser.add_argument("--arrival-tokens", type=positive, default=1000, help="default: 1000")
    parser.add_argument("--seed", type=int, default=0)
    add_setup_arguments(parser)
    args = parse(parser)
    if args.streams < 0:
        parser.error("--streams must be at least 0")
    return args


def main() -> None:
    args = parse_arguments()
    setup = setup_of(args)
    with scratch_folder() as scratch:
        run_rounds(args.rounds, partial(measure, args, setup, Path(scratch)), partial(report, args))


if __name__ == "__main__":
    sys.exit(run(main))
