"""A plan as text."""

from __future__ import annotations

import json

from pipeline.plan.records import Plan
from pipeline.plan.solver import gigabytes

_HEADINGS = ("node", "layers", "count", "parameters", "decode", "prefill", "KV / 1k tokens")


def render(plan: Plan) -> str:
    """One line for each node under a heading; no line break at the end."""
    rows = [
        (
            stage.node,
            str(stage.layers),
            str(len(stage.layers)),
            gigabytes(stage.parameter_bytes),
            f"{stage.decode_part:.1%}",
            f"{stage.prefill_part:.1%}",
            "unknown"
            if stage.kv_bytes_per_token is None
            else gigabytes(1000 * stage.kv_bytes_per_token),
        )
        for stage in plan.stages
    ]
    table = [_HEADINGS, *rows]
    widths = [max(len(row[column]) for row in table) for column in range(len(_HEADINGS))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column < 2 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in table
    )


def as_json(plan: Plan) -> str:
    """One line: a list of stages with their first and last layer."""
    return json.dumps(
        [
            {
                "node": stage.node,
                "layers": [stage.layers.start, stage.layers.end - 1],
                "parameter_bytes": stage.parameter_bytes,
            }
            for stage in plan.stages
        ]
    )
