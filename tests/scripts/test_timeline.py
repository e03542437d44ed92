"""Timelines: what the ranks write, and what scripts/timeline.py makes of it."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

import timeline as script
from benchlib.servers import ServerFailed
from pipeline.timeline import Activity, Timeline

SECOND = 1e6


def event(rank: int, activity: Activity, start: float, end: float, step: int = 0) -> script.Event:
    return {
        "name": activity,
        "ph": "X",
        "ts": start * SECOND,
        "dur": (end - start) * SECOND,
        "pid": rank,
        "tid": 0,
        "args": {"step": step},
    }


def test_shares_are_of_the_time_in_which_any_stage_computes() -> None:
    events = [
        event(0, "choose", 0.0, 1.0),  # before anything is computed
        event(0, "build", 9.0, 10.0, step=1),
        event(0, "compute", 10.0, 14.0, step=1),
        event(1, "wait", 10.0, 14.0, step=1),
        event(1, "compute", 14.0, 20.0, step=1),
        event(1, "send", 19.0, 20.0, step=1),
    ]
    first, last = script.rows(events)
    assert (first["idle"], first["compute"], first["wait"]) == pytest.approx((60.0, 40.0, 0.0))
    assert (last["idle"], last["compute"], last["wait"]) == pytest.approx((40.0, 60.0, 40.0))
    assert last["python"] == pytest.approx(10.0)
    assert last["python_us"] == pytest.approx(1 * SECOND)


def test_without_steps_it_says_so(tmp_path: Path) -> None:
    with pytest.raises(ServerFailed, match="has no timeline"):
        script.read(tmp_path)
    (tmp_path / "rank0.json").write_text("{}")
    with pytest.raises(ServerFailed, match="rank0"):
        script.read(tmp_path)


def test_files_of_an_earlier_launch_are_left_out(tmp_path: Path) -> None:
    for epoch, ranks in ((1, 3), (2, 2)):
        timeline = Timeline()
        timeline.add("compute", time.monotonic() - 1, 0)
        for rank in range(ranks):
            timeline.write(tmp_path, rank, "node", epoch)
            os.utime(tmp_path / f"rank{rank}.json", (epoch, epoch))
    assert {event["pid"] for event in script.read(tmp_path)} == {0, 1}


def test_a_file_of_one_rank_is_a_trace(tmp_path: Path) -> None:
    timeline = Timeline()
    begun = time.monotonic()
    ended = timeline.add("compute", begun, 7)
    path = timeline.write(tmp_path / "new", 2, "master", 5)
    name, span = json.loads(path.read_text())["traceEvents"]
    assert name == {"name": "process_name", "ph": "M", "pid": 2, "args": {"name": "2 master"}}
    assert span["dur"] == pytest.approx((ended - begun) * SECOND, abs=0.1)
    assert (span["name"], span["ph"], span["pid"], span["args"]) == (
        "compute",
        "X",
        2,
        {"step": 7},
    )
