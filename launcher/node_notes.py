"""Why a node takes no part, in the words that `status` and `top` share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def why_out(node: Mapping[str, Any]) -> list[str]:
    """`node`: as `GET /admin/status` has it; a node that the launcher does not know is an empty one."""
    notes = []
    if not node.get("reachable", True):
        notes.append(node["why"] or "can't be reached")
    if node.get("refused"):
        notes.append(f"left out: {node['refused']}")
    if node.get("held_for_s") is not None:
        notes.append(f"kept out for {node['held_for_s']:.0f} s")
    return notes
