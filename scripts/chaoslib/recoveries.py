"""How long recoveries took: as clients felt it, and its parts as the launcher has written them down."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchlib.report import Column, table
from benchlib.stats import percentiles
from chaoslib.trial import Event

PARTS = ("detect", "stop", "wait", "launch", "load", "resume")
"""From the fault until the launcher knew of it; until nothing was left of the old ranks; until it started new
ones for good (backoff, other attempts); until these had met; until they were ready; until a token came."""

FELT = "next token"
ASKED_FOR = "stopped"  # the cause of an epoch's end that is no fault
Recovery = Mapping[str, Any]


def split(events: Sequence[Event], found: Sequence[Recovery]) -> list[dict[str, float]]:
    """The parts of each event's recovery in seconds; without the events after which there was none.

    One fault may have several recoveries, as one that did not last: their parts are added up.
    """
    rows = []
    for number, event in enumerate(events, 1):
        end = events[number].wall if number < len(events) else float("inf")
        own = [r for r in found if event.wall <= r["noticed_at"] < end and r["cause"] != ASKED_FOR]
        if own and event.next_token_s is not None:
            row = {p: sum(r[f"{p}_s"] for r in own) for p in ("stop", "wait", "launch", "load")}
            row["detect"] = own[0]["noticed_at"] - event.wall
            row["resume"] = event.next_token_s - sum(row.values())
            rows.append(row)
    return rows


def spread(events: Sequence[Event], found: Sequence[Recovery]) -> list[dict[str, Any]]:
    """One row for each part and for what clients felt: how many, p50, p95 and the longest, in seconds."""
    parts = split(events, found)
    rows = [_row(name, [part[name] for part in parts]) for name in PARTS]
    rows.append(_row(FELT, _felt(events)))
    kinds = sorted({event.kind for event in events})
    rows += [_row(f"{FELT}, {k}", _felt([e for e in events if e.kind == k])) for k in kinds]
    return rows


def _row(name: str, values: Sequence[float]) -> dict[str, Any]:
    found = percentiles(values, "seconds")
    return {
        "part": name,
        "count": len(values),
        "p50": found["seconds_p50"],
        "p95": found["seconds_p95"],
        "longest": max(values, default=None),
    }


def text(events: Sequence[Event], found: Sequence[Recovery]) -> str:
    """The spread as a table."""
    columns = [Column("part", "seconds"), Column("count", "count", "d")]
    columns += [Column(name, name, ".2f") for name in ("p50", "p95", "longest")]
    return table(columns, spread(events, found))


def _felt(events: Sequence[Event]) -> list[float]:
    return [event.next_token_s for event in events if event.next_token_s is not None]
