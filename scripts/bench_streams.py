#!/usr/bin/env python3
"""Measure what the HTTP side costs: memory of a stream, how late tokens are, and CPU time for each token.

    python scripts/bench_streams.py
    python scripts/bench_streams.py --idle 1000 --active 200 --rate 10 --tokens 100

The gateway is the real one, in a process of its own; its engine makes tokens by the clock and computes nothing,
so whatever is measured is the gateway's, or the client's, which runs beside it.  `late` is how much later than
by the engine's clock a token arrives, counted from the most punctual token of its stream.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import psutil

from benchlib.gateway import IDLE, MODEL
from benchlib.options import at_least_zero, new_parser, parse, positive, run, run_rounds, say
from benchlib.ports import free_ports
from benchlib.report import Column, table, write_json
from benchlib.stats import medians_by, percentiles
from server import descriptors

HOST = "127.0.0.1"
OPEN_DEADLINE_S = 120.0
OPENING = 50  # connections that are opened at once
CHUNK = b"data: {"

COLUMNS = (
    Column("what", "what"),
    Column("streams", "streams", ".0f"),
    Column("kib", "KiB per stream"),
    Column("first", "first token, ms"),
    Column("late50", "late p50, ms", ".2f"),
    Column("late99", "late p99, ms", ".2f"),
    Column("rate", "tokens/s", ".0f"),
    Column("cpu", "CPU us per token", ".0f"),
)


@contextmanager
def listening(what: str, module: str, *ports: int) -> Iterator[psutil.Process]:
    """The process of a module of benchlib, once it listens."""
    command = [sys.executable, "-m", f"benchlib.{module}", *map(str, ports)]
    folder = Path(__file__).parent
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout
            for line in process.stdout:
                if line == b"ready\n":
                    break
            else:
                raise OSError(f"the {what} ended with status {process.wait()}")
            yield psutil.Process(process.pid)
        finally:
            process.kill()


class Stream:
    """One streamed completion over a connection of its own."""

    def __init__(self, port: int, max_tokens: int, rate: int = 0) -> None:
        self._port, self._max_tokens, self._rate = port, max_tokens, rate
        self.asked = 0.0
        self.arrivals: list[float] = []

    async def open(self) -> None:
        """Ask, and wait for the first token."""
        self._reader, self._writer = await asyncio.open_connection(HOST, self._port)
        fields = {
            "model": MODEL,
            "prompt": "Once",
            "max_tokens": self._max_tokens,
            "seed": self._rate,
        }
        body = json.dumps({**fields, "stream": True}).encode()
        head = (
            f"POST /v1/completions HTTP/1.1\r\nhost: {HOST}\r\ncontent-length: {len(body)}\r\n\r\n"
        )
        self.asked = time.monotonic()
        self._writer.write(head.encode() + body)
        while not self.arrivals:
            await self._take()

    async def read(self) -> None:
        """Read to the end: the last chunk of a choice has no token."""
        while len(self.arrivals) <= self._max_tokens:
            await self._take()
        self.arrivals.pop()

    async def _take(self) -> None:
        data = await self._reader.read(1 << 16)
        if not data:
            raise OSError("the gateway closed a stream")
        self.arrivals += [time.monotonic()] * data.count(CHUNK)

    def close(self) -> None:
        self._writer.close()

    def lateness(self) -> list[float]:
        """Seconds by which each token came later than the most punctual one of the stream."""
        since = [at - number / self._rate for number, at in enumerate(self.arrivals)]
        return [each - min(since) for each in since]


async def open_all(streams: list[Stream]) -> None:
    """A few at a time: a backlog that overflows is the kernel's matter, not what is measured."""
    for start in range(0, len(streams), OPENING):
        opening = (stream.open() for stream in streams[start : start + OPENING])
        await asyncio.wait_for(asyncio.gather(*opening), OPEN_DEADLINE_S)


def cpu_seconds(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


async def idle_streams(
    process: psutil.Process, port: int, count: int
) -> tuple[list[Stream], dict[str, Any]]:
    """Open them, and what each holds."""
    warm = [Stream(port, 20) for _ in range(20)]
    for stream in warm:
        await stream.open()
        await stream.read()
        stream.close()
    before = process.memory_info().rss
    streams = [Stream(port, IDLE) for _ in range(count)]
    await open_all(streams)
    grown = process.memory_info().rss - before
    return streams, {"what": "idle", "streams": count, "kib": grown / 1024 / max(count, 1)}


async def active_streams(
    process: psutil.Process, port: int, count: int, tokens: int, rate: int
) -> dict[str, Any]:
    """Read them all at once."""
    streams = [Stream(port, tokens, rate) for _ in range(count)]
    cpu, began = cpu_seconds(process), time.monotonic()

    async def one(stream: Stream) -> None:
        await stream.open()
        await stream.read()

    await asyncio.gather(*map(one, streams))
    seconds, cpu = time.monotonic() - began, cpu_seconds(process) - cpu
    for stream in streams:
        stream.close()
    late = [1e3 * t for stream in streams for t in stream.lateness()] if rate else []
    first = [1e3 * (stream.arrivals[0] - stream.asked) for stream in streams]
    return {
        "what": f"active, {rate}/s each" if rate else "active, unpaced",
        "streams": count,
        "first": percentiles(first, "first")["first_p50"],
        "late50": percentiles(late, "late")["late_p50"],
        "late99": percentiles(late, "late")["late_p99"],
        "rate": count * tokens / seconds,
        "cpu": 1e6 * cpu / (count * tokens),
    }


async def measure(
    args: argparse.Namespace, process: psutil.Process, port: int
) -> list[dict[str, Any]]:
    alone = await active_streams(process, port, 1, args.tokens, args.rate)
    idle, opened = await idle_streams(process, port, args.idle)
    rows = [alone, opened]
    for rate in (args.rate, 0):
        say(f"{args.idle} idle, {args.active} active streams")
        rows.append(await active_streams(process, port, args.active, args.tokens, rate))
    for stream in idle:
        stream.close()
    return rows


def one_round(args: argparse.Namespace, number: int) -> list[dict[str, Any]]:
    [port] = free_ports(1)
    with listening("gateway", "gateway", port) as process:
        return asyncio.run(measure(args, process, port))


def report(args: argparse.Namespace, rows: list[dict[str, Any]], of_what: str) -> None:
    summary = medians_by(rows, "what", "streams")
    print(f"\n{args.idle} idle streams open while {args.active} are active; {of_what}.\n")
    print(table(COLUMNS, summary))
    write_json(args, rows=rows, summary=summary)


def main() -> None:
    parser = new_parser(__doc__, rounds=1)
    parser.add_argument("--idle", type=positive, default=1000, help="default: 1000")
    parser.add_argument("--active", type=positive, default=200, help="default: 200")
    parser.add_argument("--tokens", type=positive, default=100, help="of each; default: 100")
    parser.add_argument(
        "--rate", type=at_least_zero, default=10, help="tokens/s of each; default: 10"
    )
    args = parse(parser)
    args.rate = int(args.rate)
    descriptors.raise_limit()
    run_rounds(args.rounds, partial(one_round, args), partial(report, args))


if __name__ == "__main__":
    sys.exit(run(main))
