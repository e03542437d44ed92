#!/usr/bin/env python3
"""What being watched costs: tokens/s with viewers of the event feed and scrapes, against without.

    python scripts/bench_observe.py --ranks 2 --streams 8 --rounds 9

One server for all rounds.  In each round the same load runs twice, watched and unwatched, in turn the one or
the other first, so that what slows the machine down for a while hits both.  Watched means: so many viewers of
/v1/cluster/events, and each second one scrape of /metrics and one look at the latest logs; they run on this
machine too, so their own CPU time is part of the cost.  What is always on, metrics of each token, can't be left
out of a server; it is timed by itself, and its share is told.  So is the CPU time of the server per token:
where other programs share the machine, it says more than the clock.  At the end of each round nothing is asked
for a while, unwatched and watched: the CPU time per second of all processes of the server.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import statistics
import sys
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import httpx
from prometheus_client import CollectorRegistry

from benchlib.client import Client, Request
from benchlib.load import closed_loop, warm_up
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
from benchlib.servers import LocalServer, ServerFailed, scratch_folder
from benchlib.stats import ratio
from benchlib.targets import OURS, SUPERVISED, Target
from pipeline.request import GenerationRequest, SamplingParams, TokenEvent
from server.observe.latency import Latencies
from server.observe.requests import RequestBook

SCRAPE_S = 1.0
SETTLE_S = 1.0  # before an idle server is looked at
PICTURE = b'data: {"time"'
HOOK_TOKENS = 100_000
COLUMNS = (
    Column("rounds", "rounds", "d"),
    Column("unwatched", "unwatched, tokens/s"),
    Column("watched", "watched, tokens/s"),
    Column("ratio", "ratio", ".4f"),
    Column("low", "lowest", ".4f"),
    Column("high", "highest", ".4f"),
    Column("cpu_ratio", "ratio of CPU/token", ".4f"),
    Column("pictures", "pictures/s per viewer"),
    Column("idle", "idle, cores", ".4f"),
    Column("idle_watched", "idle and watched", ".4f"),
    Column("hook_us", "always on, us/token", ".2f"),
    Column("hook_percent", "of one core, %", ".3f"),
)


async def view(client: httpx.AsyncClient, seen: list[int]) -> None:
    """A viewer of the event feed, until cancelled; counts the pictures."""
    async with client.stream("GET", "/v1/cluster/events", timeout=None) as events:
        events.raise_for_status()
        async for (
            chunk
        ) in events.aiter_raw():  # as little work as can be: people look from elsewhere
            seen[0] += chunk.count(PICTURE)


async def scrape(client: httpx.AsyncClient) -> None:
    """What a Prometheus and a dashboard ask for, until cancelled."""
    while True:
        for path in ("/metrics", "/v1/cluster/logs?lines=100"):
            answer = await client.get(path)
            if answer.is_error:
                raise ServerFailed(f"{path}: {answer.status_code} {answer.text[:200]}")
        await asyncio.sleep(SCRAPE_S)


@contextlib.asynccontextmanager
async def watched(url: str, viewers: int) -> AsyncIterator[list[int]]:
    """All that watches; gives the number of pictures that all viewers have seen."""
    seen = [0]
    async with httpx.AsyncClient(base_url=url, timeout=30) as client:
        tasks = [asyncio.create_task(view(client, seen)) for _ in range(viewers)]
        tasks.append(asyncio.create_task(scrape(client)))
        try:
            yield seen
        finally:
            ended = [task for task in tasks if task.done()]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            for task in ended:
                if task.exception() is not None:
                    raise ServerFailed(f"a viewer was lost: {task.exception()!r}")


@dataclass(frozen=True)
class Run:
    """The load, once."""

    tokens_per_s: float
    seconds: float
    cpu_per_token: float  # seconds, of all processes of the server


async def load(server: LocalServer, requests: Sequence[Request], streams: int) -> Run:
    """Raises ServerFailed if a request fails."""
    before = cpu_seconds(server)
    async with Client(server.url, server.model) as client:
        done = await closed_loop(client, requests, streams)
    if done.errors:
        raise ServerFailed(f"requests failed: {done.errors}")
    summary = done.summary()
    rate, tokens = summary["tokens_per_s"], summary["tokens"]
    assert rate
    assert tokens
    return Run(rate, done.seconds, (cpu_seconds(server) - before) / tokens)


def cpu_seconds(server: LocalServer) -> float:
    """Of all its processes, which other programs of this machine disturb less than they do the clock."""
    times = [process.cpu_times() for process in server.processes()]
    return sum(each.user + each.system for each in times)


async def idle(args: argparse.Namespace, server: LocalServer) -> dict[str, float]:
    """CPU seconds per second of a server that has nothing to do."""

    async def cores() -> float:
        await asyncio.sleep(SETTLE_S)
        began, before = time.perf_counter(), cpu_seconds(server)
        await asyncio.sleep(args.idle)
        return (cpu_seconds(server) - before) / (time.perf_counter() - began)

    unwatched = await cores()
    async with watched(server.url, args.viewers):
        return {"idle": unwatched, "idle_watched": await cores()}


async def one_round(
    args: argparse.Namespace, server: LocalServer, prompts: PromptMaker, number: int
) -> dict[str, Any]:
    """The same load twice."""
    found: dict[str, Any] = {}
    cpu: dict[bool, float] = {}
    for is_watched in (number % 2 == 0, number % 2 == 1):
        seed = 1000 * (2 * number + is_watched)
        requests = [
            Request(prompts.prompt(seed + i, args.prompt), args.tokens)
            for i in range(2 * args.streams)
        ]
        if is_watched:
            async with watched(server.url, args.viewers) as seen:
                done = await load(server, requests, args.streams)
                found["pictures"] = seen[0] / done.seconds / args.viewers
        else:
            done = await load(server, requests, args.streams)
        found["watched" if is_watched else "unwatched"] = done.tokens_per_s
        cpu[is_watched] = done.cpu_per_token
    found["cpu_ratio"] = ratio(cpu[True], cpu[False])
    if args.idle:
        found |= await idle(args, server)
    found["ratio"] = ratio(found["watched"], found["unwatched"])
    say(f"round {number}: {found['ratio']:.4f}, CPU {found['cpu_ratio']:.4f}")
    return found


def hook_us() -> float:
    """Microseconds that the books take for one token."""
    book = RequestBook(Latencies("model", CollectorRegistry()))
    flight = book.open(
        GenerationRequest(id="x", prompt=(1,), params=SamplingParams(), max_tokens=HOOK_TOKENS)
    )
    event = TokenEvent(1)
    began = time.perf_counter()
    for _ in range(HOOK_TOKENS):
        book.token(flight, event)
    return 1e6 * (time.perf_counter() - began) / HOOK_TOKENS


def report(args: argparse.Namespace, rows: list[dict[str, Any]], of_what: str) -> None:
    """Show and write the results."""
    ratios = [row["ratio"] for row in rows]
    hook = hook_us()
    summary = {
        "rounds": len(rows),
        **{key: statistics.median(row[key] for row in rows) for key in ("unwatched", "watched")},
        "ratio": statistics.median(ratios),
        "low": min(ratios),
        "high": max(ratios),
        "cpu_ratio": statistics.median(row["cpu_ratio"] for row in rows),
        "pictures": statistics.median(row["pictures"] for row in rows),
        "hook_us": hook,
        "idle": None,
        "idle_watched": None,
    }
    if args.idle:
        summary |= {
            key: statistics.median(row[key] for row in rows) for key in ("idle", "idle_watched")
        }
    summary["hook_percent"] = 1e-4 * hook * summary["unwatched"]
    where = "supervised ranks" if args.supervised else "ranks"
    print(f"\n{args.streams} streams, {args.ranks} {where}, {args.viewers} viewers; {of_what}.\n")
    print(table(COLUMNS, [summary]))
    write_json(args, benchmark="observe", summary=summary, rounds=rows)
    if args.plot:
        draw(ratios, args.plot)


def draw(ratios: Sequence[float], path: Path) -> None:
    """The ratio of each round, and their median."""
    figure = new_figure(1)
    [axes] = figure.axes
    axes.plot(range(len(ratios)), ratios, "o")
    axes.axhline(statistics.median(ratios), linestyle="--")
    axes.set(title="watched / unwatched", xlabel="round", ylabel="ratio of tokens/s")
    save_figure(figure, path)


def parse_arguments() -> argparse.Namespace:
    parser = new_parser(__doc__, rounds=9)
    parser.add_argument("--ranks", type=positive, default=2, help="default: 2")
    parser.add_argument(
        "--supervised",
        action="store_true",
        help="with the launcher, whose front door viewers look at",
    )
    parser.add_argument("--streams", type=positive, default=8, help="default: 8")
    parser.add_argument("--viewers", type=positive, default=5, help="default: 5")
    parser.add_argument("--prompt", type=positive, default=32, help="tokens; default: 32")
    parser.add_argument("--tokens", type=positive, default=64, help="output; default: 64")
    parser.add_argument(
        "--idle", type=float, default=5.0, metavar="SECONDS", help="0: not looked at; default: 5"
    )
    add_setup_arguments(parser)
    return parse(parser)


def main() -> None:
    args = parse_arguments()
    setup = setup_of(args)
    kind = SUPERVISED if args.supervised else OURS
    with (
        scratch_folder() as scratch,
        setup.server(Target(kind, args.ranks), Path(scratch)) as server,
    ):
        asyncio.run(warm_up(server))
        prompts = PromptMaker.of_model(setup.model)

        def measure(number: int) -> list[dict[str, Any]]:
            return [asyncio.run(one_round(args, server, prompts, number))]

        run_rounds(args.rounds, measure, partial(report, args))


if __name__ == "__main__":
    sys.exit(run(main))
