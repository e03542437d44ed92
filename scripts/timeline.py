#!/usr/bin/env python3
"""What each stage did when: how long it computed, waited and was kept busy by Python, and one trace file.

    python scripts/timeline.py --ranks 3 --streams 8     # starts a cluster, records it under load
    python scripts/timeline.py FOLDER                    # what a cluster with tracing.folder has written

Shares are of the time between the first and the last step in which any stage computed.  `idle` is what a
stage did not compute.  `Python` is what a step costs a rank beside computing and waiting: choosing the step,
building its graph, announcing it, taking the result.  --trace writes all ranks into one file, for
chrome://tracing or Perfetto.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

from benchlib.client import Client, Request
from benchlib.load import closed_loop, warm_up
from benchlib.options import Row, add_setup_arguments, positive, run, say, setup_of
from benchlib.prompts import PromptMaker
from benchlib.report import (
    Column,
    add_output_arguments,
    check_output,
    new_figure,
    save_figure,
    table,
    write_json,
)
from benchlib.servers import ServerFailed, scratch_folder
from benchlib.targets import OURS, Target
from pipeline.timeline import Activity

Event = dict[str, Any]

ACTIVITIES: tuple[Activity, ...] = get_args(Activity)
PYTHON: tuple[Activity, ...] = ("choose", "build", "send", "absorb")
COLUMNS = (
    Column("stage", "stage"),
    Column("steps", "steps", "d"),
    Column("idle", "idle, %"),
    Column("compute", "compute, %"),
    Column("wait", "wait, %"),
    Column("python", "Python, %"),
    Column("step_us", "compute/step, us", ".0f"),
    Column("python_us", "Python/step, us", ".0f"),
)


def read(folder: Path) -> list[Event]:
    """The events of all ranks of the latest launch.

    Raises ServerFailed if there are none, or a file is no timeline.  Each rank writes on its own
    machine: with several, copy their files into one folder first.
    """
    paths = sorted(folder.glob("rank*.json"), key=lambda path: path.stat().st_mtime)
    documents = [document_of(path) for path in paths]
    latest = [d for d in documents if d["epoch"] == documents[-1]["epoch"]]
    if len(latest) < len(documents):
        say(f"{len(documents) - len(latest)} files of earlier launches are left out")
    events: list[Event] = [event for document in latest for event in document["traceEvents"]]
    if not any(event["ph"] == "X" for event in events):
        raise ServerFailed(f"{folder} has no timeline: set tracing.folder, and end the cluster")
    return events


def document_of(path: Path) -> dict[str, Any]:
    """What one rank has written.  Raises ServerFailed."""
    try:
        document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        sound = all("ph" in event for event in document["traceEvents"]) and "epoch" in document
    except (ValueError, KeyError, TypeError) as error:
        raise ServerFailed(f"{path} is not a timeline: {error!r}") from error
    if not sound:
        raise ServerFailed(f"{path} is not a timeline of this project")
    return document


def rows(events: Iterable[Event]) -> list[Row]:
    """A row for each stage."""
    spans = [event for event in events if event["ph"] == "X"]
    computed = [span for span in spans if span["name"] == "compute"]
    if not computed:
        raise ServerFailed("no stage computed anything while the timeline was recorded")
    begin = min(span["ts"] for span in computed)
    end = max(span["ts"] + span["dur"] for span in computed)
    names = {event["pid"]: event["args"]["name"] for event in events if event["ph"] == "M"}
    inside = [span for span in spans if span["ts"] < end and span["ts"] + span["dur"] > begin]
    return [
        row(names.get(rank, str(rank)), [s for s in inside if s["pid"] == rank], end - begin)
        for rank in sorted({span["pid"] for span in spans})
    ]


def row(name: str, spans: Sequence[Event], window: float) -> Row:
    """Shares of `window` in percent, medians of one step in microseconds."""
    seconds = dict.fromkeys(ACTIVITIES, 0.0)
    per_step: dict[int, float] = {}
    for span in spans:
        seconds[span["name"]] += span["dur"]
        if span["name"] in PYTHON:
            step = span["args"]["step"]
            per_step[step] = per_step.get(step, 0.0) + span["dur"]
    durations = [span["dur"] for span in spans if span["name"] == "compute"]
    return {
        "stage": name,
        "steps": len({span["args"]["step"] for span in spans}),
        "idle": 100 * (1 - seconds["compute"] / window),
        "compute": 100 * seconds["compute"] / window,
        "wait": 100 * seconds["wait"] / window,
        "python": 100 * sum(seconds[name] for name in PYTHON) / window,
        "step_us": statistics.median(durations) if durations else None,
        "python_us": statistics.median(per_step.values()) if per_step else None,
    }


async def load(url: str, model: str, args: argparse.Namespace, prompts: PromptMaker) -> None:
    requests = [
        Request(prompts.prompt(seed, args.prompt), args.tokens) for seed in range(2 * args.streams)
    ]
    async with Client(url, model) as client:
        done = await closed_loop(client, requests, args.streams)
    if done.errors:
        raise ServerFailed(f"requests failed: {done.errors}")


def record(args: argparse.Namespace, folder: Path) -> None:
    """Run a cluster under load; it leaves its timelines in `folder`."""
    setup = setup_of(args)
    setup = replace(setup, settings=(*setup.settings, f"tracing.folder={folder}"))
    target = Target(OURS, args.ranks)
    with scratch_folder() as scratch, setup.server(target, Path(scratch)) as server:
        say(f"{server.label}: {args.streams} streams")
        asyncio.run(warm_up(server))
        prompts = PromptMaker.of_model(setup.model)
        asyncio.run(load(server.url, server.model, args, prompts))


def draw(events: Sequence[Event], path: Path) -> None:
    """What each stage computed, as bars over time."""
    figure = new_figure(1)
    figure.set_size_inches(12, 3)
    [axes] = figure.axes
    spans = [event for event in events if event["name"] == "compute"]
    begin = min(span["ts"] for span in spans)
    for rank in sorted({span["pid"] for span in spans}):
        bars = [((s["ts"] - begin) / 1e6, s["dur"] / 1e6) for s in spans if s["pid"] == rank]
        axes.broken_barh(bars, (rank - 0.4, 0.8))
    axes.set(title="computing", xlabel="seconds", ylabel="stage")
    axes.invert_yaxis()
    save_figure(figure, path)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "folder", type=Path, nargs="?", metavar="FOLDER", help="show what is there, start nothing"
    )
    parser.add_argument("--trace", type=Path, metavar="FILE", help="write all ranks into one trace")
    parser.add_argument("--ranks", type=positive, default=3, help="default: 3")
    parser.add_argument("--streams", type=positive, default=8, help="default: 8")
    parser.add_argument("--prompt", type=positive, default=200, help="tokens; default: 200")
    parser.add_argument("--tokens", type=positive, default=64, help="output; default: 64")
    add_output_arguments(parser)
    add_setup_arguments(parser)
    args = parser.parse_args()
    check_output(parser, args)
    if args.folder is not None and not args.folder.is_dir():
        parser.error(f"{args.folder}: there is no such folder")
    if args.trace is not None and (
        args.trace.is_dir() or not args.trace.absolute().parent.is_dir()
    ):
        parser.error(f"--trace {args.trace}: no file can be written there; FOLDER alone shows one")
    return args


def main() -> None:
    args = parse_arguments()
    if args.folder is not None:
        events = read(args.folder)
    else:
        with scratch_folder() as folder:
            record(args, Path(folder))
            events = read(Path(folder))
    found = rows(events)
    print(table(COLUMNS, found))
    write_json(args, benchmark="timeline", stages=found)
    if args.trace:
        args.trace.write_text(json.dumps({"traceEvents": events}), encoding="utf-8")
        say(f"{args.trace}: open it in chrome://tracing or Perfetto")
    if args.plot:
        draw(events, args.plot)


if __name__ == "__main__":
    sys.exit(run(main))
