"""Where trace_prefill.py says that the time of a prompt went."""

from __future__ import annotations

import pytest

from benchlib.servers import ServerFailed
from timeline import Event
from trace_prefill import Prompt, row_of, rows_of

PROMPT = Prompt(length=100, tokens=100, sent=10.0, ended=16.0)


def span(rank: int, name: str, begin: float, seconds: float) -> Event:
    return {"ph": "X", "pid": rank, "name": name, "ts": 1e6 * begin, "dur": 1e6 * seconds}


EVENTS = [
    {"ph": "M", "pid": 0, "name": "process_name", "ts": 0},
    span(0, "compute", 9.0, 0.5),  # of the prompt before
    span(0, "build", 10.0, 0.25),  # before its first chunk
    span(0, "compute", 10.5, 1.0),
    span(0, "send", 11.5, 0.25),
    span(0, "compute", 12.5, 1.5),
    span(1, "wait", 10.0, 1.5),
    span(1, "compute", 11.5, 1.0),
    span(1, "compute", 14.0, 2.0),
    span(1, "compute", 16.5, 1.0),  # of the next one
]


def test_what_each_stage_did_between_the_request_and_its_first_token() -> None:
    first, last = rows_of(EVENTS, PROMPT)
    assert first == pytest.approx(
        {
            "stage": 0,
            "chunks": 2,
            "before_s": 0.5,
            "compute_s": 2.5,
            "python_s": 0.25,
            "between_s": 0.75,
            "after_s": 2.0,
            "chunk_ms": 1250,
        }
    )
    assert (last["stage"], last["before_s"], last["between_s"], last["after_s"]) == (1, 1.5, 1.5, 0)


def test_the_parts_add_up_to_the_time_to_the_first_token() -> None:
    parts = ("before_s", "compute_s", "python_s", "between_s", "after_s")
    for row in rows_of(EVENTS, PROMPT):
        assert sum(row[part] for part in parts) == pytest.approx(PROMPT.ended - PROMPT.sent)


def test_where_no_stage_ever_waits_it_is_ideal() -> None:
    row = row_of(2, PROMPT, rows_of(EVENTS, PROMPT))
    assert row["share_percent"] == pytest.approx(100 * (2.5 + 3.0) / (2 * 6.0))
    assert row["first_token_s"] == 6.0


def test_a_stage_that_computed_nothing_is_a_fault() -> None:
    with pytest.raises(ServerFailed, match="stage 0 computed nothing"):
        rows_of([span(0, "wait", 11.0, 1.0)], PROMPT)
