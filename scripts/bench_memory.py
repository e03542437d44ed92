#!/usr/bin/env python3
"""Measure memory: what each rank holds against the parameters of its layers, idle and at its peak under load.

    python scripts/bench_memory.py
    python scripts/bench_memory.py --ranks 4 --streams 16 --prompt-tokens 2000 --rounds 3

`layers` is what the checkpoint says the layers of the rank take, with the embedding on the first and the head
on the last one.  `held`, `idle` and `peak` are what the rank reports on /v1/cluster: its parameters, and MLX's
own counters before and after the load.  `resident` is what the operating system counts for the whole process
after the load; files mapped into memory are part of it.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import psutil

from benchlib.client import Client, Request
from benchlib.load import closed_loop
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
from benchlib.servers import ANSWER_DEADLINE, POLL, LocalServer, scratch_folder
from benchlib.stats import medians_by, ratio
from benchlib.targets import OURS, Setup, Target
from pipeline.checkpoint import Checkpoint
from pipeline.plan import LayerRange

HEARTBEAT = 0.5  # seconds; each one brings the memory of its rank
REPORT_DEADLINE = 30.0

COLUMNS = (
    Column("rank", "rank", "d"),
    Column("range", "of the model"),
    Column("layers_mb", "layers MB"),
    Column("held_mb", "held"),
    Column("idle_mb", "idle"),
    Column("peak_mb", "peak"),
    Column("resident_mb", "resident"),
    Column("held_ratio", "held / layers", ".3f"),
    Column("peak_ratio", "peak / layers", ".3f"),
)


def reports(server: LocalServer) -> list[dict[str, Any]]:
    """What every rank says of itself from this moment on, not before.  Raises ServerFailed."""
    asked = time.monotonic()
    while time.monotonic() < asked + REPORT_DEADLINE:
        answer = httpx.get(f"{server.url}/v1/cluster", timeout=ANSWER_DEADLINE)
        ranks: list[dict[str, Any]] = answer.raise_for_status().json()["ranks"]
        age = time.monotonic() - asked
        if all(rank["memory"] and rank["heartbeat_age_s"] < age for rank in ranks):
            return ranks
        time.sleep(POLL)
    raise server.failed(f"a rank has not reported for {REPORT_DEADLINE:g} s")


async def load(server: LocalServer, requests: Sequence[Request]) -> None:
    """All requests at a time.  Raises ServerFailed if one fails."""
    async with Client(server.url, server.model) as client:
        done = await closed_loop(client, requests, len(requests))
    for error in done.errors:
        raise server.failed(f"a request failed: {error}")


def rows_of(
    checkpoint: Checkpoint, idle: Sequence[dict[str, Any]], loaded: Sequence[dict[str, Any]]
) -> list[dict[str, Any]]:
    """A row for each rank, sizes in megabytes (1e6 bytes)."""
    costs = checkpoint.costs()
    rows = []
    for before, after in zip(idle, loaded, strict=True):
        first, last = after["layers"]["range"]
        size = costs.parameter_bytes(LayerRange(first, last + 1))
        held, peak = after["parameter_bytes"], after["memory"]["peak_bytes"]
        rows.append(
            {
                "rank": after["rank"],
                "range": f"{first} to {last} of {costs.num_layers}",
                "layers_mb": size / 1e6,
                "held_mb": held / 1e6,
                "idle_mb": before["memory"]["active_bytes"] / 1e6,
                "peak_mb": peak / 1e6,
                "resident_mb": psutil.Process(after["pid"]).memory_info().rss / 1e6,
                "held_ratio": ratio(held, size),
                "peak_ratio": ratio(peak, size),
            }
        )
    return rows


def measure(
    args: argparse.Namespace, setup: Setup, scratch: Path, number: int
) -> list[dict[str, Any]]:
    """One start, one load."""
    heartbeat = f"coordinator.health_check_interval={HEARTBEAT}"
    setup = replace(setup, settings=(*setup.settings, heartbeat))
    prompts = PromptMaker.of_model(setup.model)
    requests = [
        Request(prompts.prompt(seed, args.prompt_tokens), args.output_tokens)
        for seed in range(args.streams)
    ]
    with setup.server(Target(OURS, args.ranks), scratch) as server:
        idle = reports(server)
        say(
            f"round {number}  {server.label}: {args.streams} streams of {args.prompt_tokens} prompt tokens"
        )
        asyncio.run(load(server, requests))
        return rows_of(Checkpoint.open(setup.model), idle, reports(server))


def report(args: argparse.Namespace, rows: Sequence[dict[str, Any]], of_what: str) -> None:
    """Show and write the results."""
    summary = medians_by(rows, "rank", "range")
    print(f"\nIn MB of 1e6 bytes; {of_what}.\n")
    print(table(COLUMNS, summary))
    write_json(args, benchmark="memory", summary=summary, rounds=rows)
    if args.plot:
        draw(summary, args.plot)


def draw(summary: Sequence[dict[str, Any]], path: Path) -> None:
    """Bars for each rank."""
    figure = new_figure(1)
    axes = figure.axes[0]
    kinds = ("layers_mb", "held_mb", "idle_mb", "peak_mb")
    width = 0.8 / len(kinds)
    for i, kind in enumerate(kinds):
        x = [row["rank"] + i * width for row in summary]
        axes.bar(x, [row[kind] for row in summary], width, label=kind.removesuffix("_mb"))
    axes.set(title="memory per rank", xlabel="rank", ylabel="MB")
    axes.set_xticks([row["rank"] for row in summary])
    save_figure(figure, path)


def parse_arguments() -> argparse.Namespace:
    parser = new_parser(__doc__, rounds=1)
    parser.add_argument("--ranks", type=positive, default=3)
    parser.add_argument("--streams", type=positive, default=4)
    parser.add_argument("--prompt-tokens", type=positive, default=500)
    parser.add_argument("--output-tokens", type=positive, default=16)
    add_setup_arguments(parser)
    return parse(parser)


def main() -> None:
    args = parse_arguments()
    setup = setup_of(args)
    with scratch_folder() as scratch:
        run_rounds(args.rounds, partial(measure, args, setup, Path(scratch)), partial(report, args))


if __name__ == "__main__":
    sys.exit(run(main))
