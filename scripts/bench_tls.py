#!/usr/bin/env python3
"""Measure what TLS costs: per hop of the ring, per token, and per request at the gateway.

    python scripts/bench_tls.py
    python scripts/bench_tls.py --rounds 3 --count 200 --json tls.json

Everything is on this machine, so the tunnels of the hidden states share its cores with the ranks.  Hops are
measured as scripts/bench_link.py does it, tokens with one stream over two ranks, requests with an application
that does nothing.  A round measures each case once, one after the other.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from bench_link import FRAMES, rows_of
from benchlib.client import Client, Request
from benchlib.gateway_cost import measure_gateway
from benchlib.hop import FLOAT_BYTES, Exchange, HopPlan, measure_all
from benchlib.jobs import print_result, run_job
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
from benchlib.ports import free_ports
from benchlib.report import Column, table, write_json
from benchlib.servers import scratch_folder
from benchlib.stats import medians_by
from benchlib.targets import OURS, Setup, Target, local_job
from config import Config
from config.tls import TlsConfig
from pipeline.ring import launched_size
from server.tls.folder import Folder
from server.tls.identity import Identity, Kind
from server.tls.own import OwnTls
from server.tls.tunnel.rank_side import open_tunnel

RANKS = 2
DEADLINE = 600.0  # seconds for the hops of one round
PROMPT = "Tell me how rivers come to the sea, and what they bring along."

COLUMNS = (
    Column("what", "what"),
    Column("tls", "tls"),
    Column("size", "bytes", "d"),
    Column("us_p50", "us p50", ".0f"),
    Column("us_p95", "p95", ".0f"),
    Column("mb_per_s", "MB/s", ".0f"),
    Column("tokens_per_s", "tokens/s", ".2f"),
    Column("inter_token_ms_p50", "ms per token", ".2f"),
)


def with_settings(setup: Setup, settings: Sequence[str]) -> Setup:
    """With more of them."""
    return replace(setup, settings=(*setup.settings, *settings))


def certificates(folder: Path) -> Path:
    """For the ranks by rule (hops), those of the servers, and the gateway."""
    made = Folder(folder, datetime.now(timezone.utc))
    made.init("benchmark")
    for rank in range(RANKS):
        for name in (f"node{rank}", f"n{rank}"):
            made.add(Identity(Kind.NODE, name))
    made.add(Identity(Kind.GATEWAY, "gateway"), ["127.0.0.1"])
    return folder


def tls_config(folder: Path) -> TlsConfig:
    """All of it."""
    return TlsConfig.model_validate(
        {
            "gateway": {"mode": "own"},
            "cluster": {"enabled": True, "folder": str(folder)},
            "tensors": True,
        }
    )


def hops(args: argparse.Namespace, folder: Path | None) -> list[dict[str, Any]]:
    """Frames and tensors from rank to rank, with the certificates of `folder`, or without TLS."""
    plan = HopPlan(FRAMES[:1], tuple(args.sizes), args.count)
    command = [
        *local_job(RANKS, free_ports(RANKS)[0]),
        sys.executable,
        str(Path(__file__).resolve()),
    ]
    command += ["--hop", msgspec.json.encode(plan).decode()]
    if folder is not None:
        command += ["--certificates", str(folder)]
    found = run_job(command, Setup(Path()).environment(), list[list[Exchange]], DEADLINE)
    rows = rows_of(found)
    for row in rows:
        row["what"] = f"{row.pop('kind')}, hop {row.pop('hop')}"
    return rows


def tokens(args: argparse.Namespace, setup: Setup) -> list[dict[str, Any]]:
    """One stream."""

    async def stream(url: str, model: str) -> dict[str, Any]:
        async with Client(url, model) as client:
            one = await closed_loop(client, [Request(PROMPT, args.tokens)], 1)
        return dict(one.summary())

    with scratch_folder() as scratch, setup.server(Target(OURS, RANKS), Path(scratch)) as server:
        asyncio.run(warm_up(server))
        return [{"what": "one stream", **asyncio.run(stream(server.url, server.model))}]


def one_round(args: argparse.Namespace, number: int) -> list[dict[str, Any]]:
    """All cases."""
    setup = setup_of(args)
    with scratch_folder() as scratch:
        folder = certificates(Path(scratch) / "tls")
        cluster = ("tls.cluster.enabled=true", f"tls.cluster.folder={folder}")
        links = with_settings(setup, cluster)
        every = with_settings(setup, (*cluster, "tls.tensors=true"))
        say(f"round {number}: without TLS")
        plain = [*hops(args, None), *tokens(args, setup)]
        say(f"round {number}: frames, gRPC and ports inside TLS")
        framed = tokens(args, links)
        say(f"round {number}: hidden states too")
        carried = [*hops(args, folder), *tokens(args, every)]
        rows = [
            *({**row, "tls": "none"} for row in plain),
            *({**row, "tls": "frames, gRPC, ports"} for row in framed),
            *({**row, "tls": "hidden states too"} for row in carried),
            *measure_gateway(tls_config(folder), args.count),
        ]
        return [{"size": None, **row} for row in rows]  # streams and requests have none


def report(args: argparse.Namespace, rows: Sequence[dict[str, Any]], of_what: str) -> None:
    """Show and write the results."""
    summary = medians_by(rows, "what", "tls", "size")
    print(f"\n{of_what}; {RANKS} ranks on one machine.\n")
    print(table(COLUMNS, summary))
    write_json(args, benchmark="tls", summary=summary, rounds=rows)


def parse_arguments() -> argparse.Namespace:
    parser = new_parser(__doc__, rounds=1)
    add_setup_arguments(parser)
    parser.add_argument("--count", type=positive, default=50, help="exchanges of each size")
    parser.add_argument("--tokens", type=positive, default=64, help="of the one stream")
    parser.add_argument(
        "--sizes",
        type=positive,
        nargs="+",
        default=[4 << 10, 64 << 10, 1 << 20, 16 << 20],
        help="bytes of the tensors; default: 4 KiB to 16 MiB",
    )
    parser.add_argument("--hop", help=argparse.SUPPRESS)  # what a rank of the job is told
    parser.add_argument("--certificates", type=Path, help=argparse.SUPPRESS)
    args = parse(parser)
    if any(size % FLOAT_BYTES for size in args.sizes):
        parser.error(f"--sizes must be multiples of {FLOAT_BYTES}: tensors are float32")
    return args


def measure_hops(args: argparse.Namespace) -> None:
    """One rank of the job."""
    plan = msgspec.json.decode(args.hop, type=HopPlan)
    if args.certificates is None:
        found = measure_all(plan)
    else:
        config = Config(tls=tls_config(args.certificates))
        own = OwnTls(config.tls)
        tunnel = open_tunnel(config, os.environ, own)
        node = config.node_of_rank(int(os.environ["MLX_RANK"]), launched_size() or 1)
        found = measure_all(plan, tunnel, own(node.name))
    if found is not None:
        print_result(found)


def main() -> None:
    args = parse_arguments()
    if args.hop:
        measure_hops(args)
    else:
        run_rounds(args.rounds, partial(one_round, args), partial(report, args))


if __name__ == "__main__":
    sys.exit(run(main))
