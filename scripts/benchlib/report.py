"""How results are shown: a table for people, JSON for programs, a plot."""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from benchlib.targets import blas_library

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MISSING = "-"


@dataclass(frozen=True)
class Column:
    """`key` of the rows, the heading, and how a number is formatted."""

    key: str
    heading: str
    format: str = ".1f"


def table(columns: Sequence[Column], rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows as aligned text: words to the left, numbers to the right, `-` for None."""
    cells = [[_cell(row.get(column.key), column.format) for column in columns] for row in rows]
    lines = [[column.heading for column in columns], *cells]
    widths = [max(len(line[i]) for line in lines) for i in range(len(columns))]
    words = {i for i, c in enumerate(columns) if any(isinstance(r.get(c.key), str) for r in rows)}
    shown = [
        "  ".join(
            cell.ljust(width) if i in words else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]
    return "\n".join(shown)


def _cell(value: Any, spec: str) -> str:
    if value is None:
        return MISSING
    return value if isinstance(value, str) else format(value, spec)


def machine() -> dict[str, Any]:
    """What the numbers depend on."""
    return {
        "platform": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
        "load_average": os.getloadavg(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("mlx", "mlx-lm", "mlx-cluster")},
        "blas": blas_library(),
    }


def add_output_arguments(parser: argparse.ArgumentParser) -> None:
    """--json and --plot."""
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write all results here")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="also draw them as a PNG")


def check_output(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """End the program before the measurement if its results could not be written."""
    for path in (args.json, args.plot):
        if path is not None and not path.absolute().parent.is_dir():
            parser.error(f"{path}: there is no such folder")
    if args.plot is not None and importlib.util.find_spec("matplotlib") is None:
        parser.error("--plot needs matplotlib: pip install -e '.[bench]'")


def write_json(args: argparse.Namespace, **results: Any) -> None:
    """Arguments, machine and `results` to the file of --json, if there is one."""
    if args.json is None:
        return
    given = {name: value for name, value in vars(args).items() if name not in ("json", "plot")}
    content = {"arguments": given, "machine": machine(), **results}
    args.json.write_text(json.dumps(content, indent=1, default=str) + "\n", encoding="utf-8")


def new_figure(panels: int) -> Figure:
    """A figure with `panels` axes side by side, drawn without a screen."""
    from matplotlib.figure import Figure  # only --plot needs it

    figure = Figure(figsize=(5.5 * panels, 4.2), layout="constrained")
    figure.subplots(1, panels)
    for axes in figure.axes:
        axes.grid(alpha=0.3)
    return figure


def save_figure(figure: Figure, path: Path) -> None:
    """Legends are added where something has a label."""
    for axes in figure.axes:
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize="small")
    figure.savefig(path, dpi=130)
