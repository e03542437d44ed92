#!/usr/bin/env python3
"""Where the time of a long prompt goes: what each stage did from its first chunk to its first token.

    python scripts/trace_prefill.py --model FOLDER --ranks 1 4 8 --lengths 1100 4300

Prompts come one at a time to an idle server, each number of ranks in its own start; the first prompt of a start
is a short one that is not counted.  `of ideal` is what the stages computed, divided by their number, as a share
of the time to the first token: 100 % where no stage ever waits.  `speedup` compares with one rank, where there
is one.  Below, for each stage of the longest prompt, what adds up to the time to the first token, in seconds:
before its first chunk, computing, Python between chunks, waiting there, and after its last chunk; and what it
computed in a chunk (median), in milliseconds.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from benchlib.client import Client, Request
from benchlib.load import warm_up
from benchlib.options import (
    Row,
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
from benchlib.report import Column, table, write_json
from benchlib.servers import LocalServer, ServerFailed, scratch_folder
from benchlib.stats import medians_by, ratio
from benchlib.targets import OURS, Target
from timeline import PYTHON, Event, read

COLUMNS = (
    Column("ranks", "ranks", "d"),
    Column("tokens", "prompt", ".0f"),
    Column("first_token_s", "first token, s", ".2f"),
    Column("speedup", "speedup", ".2f"),
    Column("chunks", "chunks", ".0f"),
    Column("compute_s", "computed, s", ".2f"),
    Column("share_percent", "of ideal, %"),
)
STAGES = (
    Column("ranks", "ranks", "d"),
    Column("stage", "stage", "d"),
    Column("chunks", "chunks", "d"),
    Column("before_s", "before", ".3f"),
    Column("compute_s", "compute", ".3f"),
    Column("python_s", "Python", ".3f"),
    Column("between_s", "between", ".3f"),
    Column("after_s", "after", ".3f"),
    Column("chunk_ms", "a chunk, ms"),
)


@dataclass(frozen=True)
class Prompt:
    """One that was sent: its tokens, and the Unix times when it was sent and when its first token came."""

    length: int  # as asked for
    tokens: int
    sent: float
    ended: float


async def send(server: LocalServer, requests: Sequence[tuple[int, Request]]) -> list[Prompt]:
    """One after the other.  Raises ServerFailed."""
    sent = []
    async with Client(server.url, server.model) as client:
        for length, request in requests:
            origin = time.time() - time.perf_counter()
            outcome = await client.run(request)
            if outcome.error is not None:
                raise server.failed(f"no first token: {outcome.error}")
            # Not its text: one token alone may be half a character.
            begin, end = origin + outcome.sent, origin + outcome.ended
            sent.append(Prompt(length, outcome.prompt_tokens, begin, end))
            say(f"  {outcome.prompt_tokens} tokens: {end - begin:.2f} s")
    return sent


def stage_row(stage: int, spans: Sequence[Event], prompt: Prompt) -> Row:
    """What one stage did between `sent` and `ended`."""
    computed = sorted((s for s in spans if s["name"] == "compute"), key=lambda s: float(s["ts"]))
    if not computed:
        raise ServerFailed(f"stage {stage} computed nothing for a prompt")
    begin, end = computed[0]["ts"] / 1e6, (computed[-1]["ts"] + computed[-1]["dur"]) / 1e6
    compute = sum(s["dur"] for s in computed) / 1e6
    within = [s for s in spans if begin <= s["ts"] / 1e6 < end]
    python = sum(s["dur"] for s in within if s["name"] in PYTHON) / 1e6
    return {
        "stage": stage,
        "chunks": len(computed),
        "before_s": begin - prompt.sent,
        "compute_s": compute,
        "python_s": python,
        "between_s": end - begin - compute - python,
        "after_s": prompt.ended - end,
        "chunk_ms": statistics.median(s["dur"] for s in computed) / 1e3,
    }


def rows_of(events: Sequence[Event], prompt: Prompt) -> list[Row]:
    """A row for each stage.  The step that makes the first token is among the chunks."""
    spans = [
        event
        for event in events
        if event["ph"] == "X" and prompt.sent <= event["ts"] / 1e6 <= prompt.ended
    ]
    ranks = sorted({span["pid"] for span in spans})
    return [stage_row(rank, [s for s in spans if s["pid"] == rank], prompt) for rank in ranks]


def one_round(args: argparse.Namespace, number: int) -> list[Row]:
    """Every number of ranks, every length."""
    setup = setup_of(args)
    prompts = PromptMaker.of_model(setup.model)
    requests = [
        (length, Request(prompts.prompt(1000 * number + i, length), 1))
        for i, length in enumerate(args.lengths)
    ]
    rows: list[Row] = []
    for ranks in args.ranks:
        with scratch_folder() as traces, scratch_folder() as scratch:
            traced = replace(setup, settings=(*setup.settings, f"tracing.folder={traces}"))
            with traced.server(Target(OURS, ranks), Path(scratch)) as server:
                say(server.label)
                asyncio.run(warm_up(server))
                sent = asyncio.run(send(server, requests))
            events = read(Path(traces))
        rows += [row_of(ranks, prompt, rows_of(events, prompt)) for prompt in sent]
    return rows


def row_of(ranks: int, prompt: Prompt, stages: Sequence[Row]) -> Row:
    seconds = prompt.ended - prompt.sent
    compute = sum(stage["compute_s"] for stage in stages)
    return {
        "ranks": ranks,
        "length": prompt.length,
        "tokens": prompt.tokens,
        "first_token_s": seconds,
        "chunks": max(stage["chunks"] for stage in stages),
        "compute_s": compute,
        "share_percent": 100 * compute / len(stages) / seconds,
        "stages": stages,
    }


def report(args: argparse.Namespace, rows: list[Row], of_what: str) -> None:
    """Show and write the results."""
    summary = medians_by(rows, "ranks", "length")
    alone = {row["length"]: row["first_token_s"] for row in summary if row["ranks"] == 1}
    for row in summary:
        row["speedup"] = ratio(alone.get(row["length"]), row["first_token_s"])
    print(f"\nOne prompt at a time; {of_what}.\n\n{table(COLUMNS, summary)}")
    longest = max(args.lengths)
    last = {row["ranks"]: row["stages"] for row in rows if row["length"] == longest}
    print("\nThe longest prompt of the last round, stage by stage, in seconds:\n")
    print(table(STAGES, [{"ranks": n, **stage} for n, stages in last.items() for stage in stages]))
    write_json(args, benchmark="trace-prefill", summary=summary, rounds=rows)


def main() -> None:
    parser = new_parser(__doc__, rounds=1)
    parser.add_argument("--ranks", type=positive, nargs="+", default=[1, 2], help="default: 1 2")
    parser.add_argument("--lengths", type=positive, nargs="+", default=[2000])
    add_setup_arguments(parser)
    args = parse(parser)
    run_rounds(args.rounds, partial(one_round, args), partial(report, args))


if __name__ == "__main__":
    sys.exit(run(main))
