"""Command-line flags that server and launcher share, and the table of --print-config."""

from __future__ import annotations

import argparse
import pathlib
from collections.abc import Mapping

from config.settings import Row, Settings, load


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add --model, --port, --config, --set and --print-config."""
    group = parser.add_argument_group("configuration")
    group.add_argument(
        "--model", metavar="MODEL", help="a name of models.yaml, a folder, a hub id, or demo"
    )
    group.add_argument("--port", type=int, metavar="PORT", help="port of the OpenAI API")
    group.add_argument(
        "--config",
        type=pathlib.Path,
        metavar="DIR",
        help="folder with cluster.yaml, nodes.yaml, models.yaml, network.yaml",
    )
    group.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="change one setting, e.g. scheduler.max_batch_size=8; may be repeated",
    )
    group.add_argument(
        "--print-config",
        action="store_true",
        help="print every setting and where it came from, and exit",
    )


def from_arguments(arguments: argparse.Namespace, environ: Mapping[str, str]) -> Settings:
    """Settings from what `add_arguments` made argparse read.  Raises ConfigError."""
    short = {"model": arguments.model, "port": arguments.port}
    return load(arguments.config, environ, arguments.set, short)


def render(settings: Settings) -> str:
    """A table: key, value, origin; one line for each setting, without a line break at the end."""
    rows = (Row("key", "value", "origin"), *settings.describe())
    key_width = max(len(row.key) for row in rows)
    value_width = max(len(row.value) for row in rows)
    return "\n".join(
        f"{row.key:<{key_width}}  {row.value:<{value_width}}  {row.origin}" for row in rows
    )
