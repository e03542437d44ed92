"""What `python -m launcher` and its `plan` take on the command line, and what follows from it."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from config import Settings, add_arguments, load
from launcher.hostfile import local_hostfile
from launcher.job import Parser, add_launch_arguments
from launcher.nodes import Cluster

DEFAULT_HOSTFILE = Path("hostfile.json")


def make_parser(program: str, description: str | None, more: str = "") -> argparse.ArgumentParser:
    """Of all arguments of the launcher: its own, and those of `python -m server`.

    `more`: the last line of its help.
    """
    parser = Parser(prog=program, description=description, epilog=more)
    add_launch_arguments(parser.add_argument_group("where it runs"), DEFAULT_HOSTFILE)
    add_arguments(parser)
    return parser


def server_arguments(args: argparse.Namespace) -> list[str]:
    """The arguments of the server among parsed ones, for its command line."""
    words: list[str] = []
    for name, value in (("--model", args.model), ("--port", args.port), ("--config", args.config)):
        words += [] if value is None else [name, str(value)]
    for setting in args.set:
        words += ["--set", setting]
    return words


def settings_of(args: argparse.Namespace, more: Sequence[str] = ()) -> Settings:
    """The configuration in force, with more `--set` arguments.  Raises ConfigError."""
    short = {"model": args.model, "port": args.port}
    return load(args.config, os.environ, [*args.set, *more], short)


def cluster_of(args: argparse.Namespace, settings: Settings, scratch: Path) -> tuple[Path, Cluster]:
    """The hostfile in force and its nodes.  Raises HostfileError and ConfigError."""
    path: Path = args.hostfile or DEFAULT_HOSTFILE
    if args.ranks is not None:
        path = scratch / "hostfile.json"
        path.write_text(local_hostfile(args.ranks), encoding="ascii")
    return path, Cluster.of(settings.config, path)
