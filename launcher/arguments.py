"""What `python -m launcher` and its `plan` take on the command line, and what follows from it."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from config import Settings, add_arguments, load
from launcher.hostfile import HostfileError, local_hostfile
from launcher.job import BACKENDS, GRACE, STARTING_PORT
from launcher.nodes import Cluster

DEFAULT_HOSTFILE = Path("hostfile.json")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message}\n")


def make_parser(program: str, description: str | None, more: str = "") -> argparse.ArgumentParser:
    """Of all arguments of the launcher: its own, and those of `python -m server`.

    `more`: the last line of its help.
    """
    parser = _Parser(prog=program, description=description, epilog=more)
    group = parser.add_argument_group("where it runs")
    where = group.add_mutually_exclusive_group()
    where.add_argument(
        "--hostfile",
        type=Path,
        help=f"the ring, as mlx.launch reads it (default: {DEFAULT_HOSTFILE})",
    )
    where.add_argument("--ranks", "-n", type=int, metavar="N", help="N ranks on this machine")
    group.add_argument("--backend", choices=BACKENDS, help="default: the hostfile's, else ring")
    group.add_argument(
        "--starting-port",
        type=int,
        default=STARTING_PORT,
        metavar="PORT",
        help="first port of MLX's ring, one more for each rank (default: %(default)s)",
    )
    group.add_argument(
        "--grace", type=float, default=GRACE, metavar="SECONDS", help="that ranks get to stop"
    )
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
        if args.ranks < 1:
            raise HostfileError(f"--ranks must be at least 1, not {args.ranks}")
        path = scratch / "hostfile.json"
        path.write_text(local_hostfile(args.ranks), encoding="ascii")
    return path, Cluster.of(settings.config, path)
