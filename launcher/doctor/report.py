"""Shows checks to people and to programs."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import msgspec

from launcher.doctor.checks import Check, Status, counts

WORDS = {Status.OK: "ok", Status.WARN: "warn", Status.FAIL: "FAIL"}


def text(checks: Sequence[Check]) -> str:
    """Places, under each its checks; what to mend stands below what is wrong."""
    lines: list[str] = []
    for place, group in groupby(checks, key=lambda check: check.place):
        lines.append(place)
        for check in group:
            lines.append(f"  {WORDS[check.status]:<4}  {check.name:<10}  {check.message}")
            if check.advice and check.status is not Status.OK:
                lines.append(f"  {'':<4}  {'':<10}  -> {check.advice}")
    return "\n".join([*lines, "", summary(checks)])


def summary(checks: Sequence[Check]) -> str:
    number = counts(checks)
    fails, warns = number[Status.FAIL], number[Status.WARN]
    if not fails and not warns:
        return "All is well."
    return f"{fails} to mend, {warns} doubtful, {number[Status.OK]} well."


def as_json(checks: Sequence[Check]) -> str:
    content = {"ok": counts(checks)[Status.FAIL] == 0, "checks": list(checks)}
    return msgspec.json.format(msgspec.json.encode(content), indent=2).decode()
