"""Timelines: what the ranks write, and what scripts/timeline.py makes of it."""

from __future__ import annotations

import json
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


def test_a_file_of_one_rank_is_a_trace(tmp_path: Path) -> None:
    timeline = Timeline()
    begun = time.monotonic()
    ended = timeline.add("compute", begun, 7)
    path = timeline.write(tmp_path / "new", 2, "master")
    name, span = json.loads(path.read_text())["traceEvents"]
    assert name == {"name": "process_name", "ph": "M", "pid": 2, "args": {"name": "2 master"}}
    assert span["dur"] == pytest.approx((ended - begun) * SECOND, abs=0.1)
    assert (span["name"], span["ph"], span["pid"], span["args"]) == (
        "compute",
        "X",
        2,
        {"step": 7},
    )
