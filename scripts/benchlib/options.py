"""Command-line options that several benchmarks have."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import httpx

from benchlib.ending import end_once
from benchlib.report import add_output_arguments, check_output
from benchlib.servers import ServerFailed
from benchlib.targets import Setup, demo_model
from config import program
from pipeline.errors import ModelError

Row = dict[str, Any]


def positive(text: str) -> int:
    """A whole number from 1 on, for argparse."""
    value = int(text)
    if value < 1:
        raise ValueError(text)
    return value


def above_zero(text: str) -> float:
    """A finite number above 0, for argparse."""
    value = float(text)
    if not 0 < value < math.inf:
        raise ValueError(text)
    return value


def at_least_zero(text: str) -> float:
    """A finite number from 0 on, for argparse."""
    value = float(text)
    if not 0 <= value < math.inf:
        raise ValueError(text)
    return value


def new_parser(description: str | None, rounds: int) -> argparse.ArgumentParser:
    """A parser with the options that every benchmark has."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=positive, default=rounds, help=f"default: {rounds}")
    add_output_arguments(parser)
    return parser


def add_setup_arguments(parser: argparse.ArgumentParser, mlx_lm_ranks: bool = False) -> None:
    """How servers are started; `mlx_lm_ranks`: mlx_lm's with several ranks, too."""
    group = parser.add_argument_group("servers started here")
    group.add_argument("--model", type=Path, help="model folder; default: the demo model as qwen2")
    group.add_argument(
        "--blas-threads",
        type=positive,
        default=1,
        help="threads of OpenBLAS in each process; 1 lets a rank stand for a machine (default)",
    )
    group.add_argument(
        "--set",
        dest="settings",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="a setting of this project's server",
    )
    if mlx_lm_ranks:
        group.add_argument(
            "--quiet-launch",
            action="store_true",
            help="start mlx_lm's ranks without mlx.launch's busy loop, with this project's launcher",
        )
    else:
        parser.set_defaults(quiet_launch=False)


def parse(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """The arguments of this program.  Ends it where the files to write have no place."""
    args = parser.parse_args()
    check_output(parser, args)
    return args


def setup_of(args: argparse.Namespace) -> Setup:
    """Raises ModelError if there is no model."""
    model = args.model.resolve() if args.model else demo_model()
    if not (model / "tokenizer.json").is_file():
        raise ModelError(f"{model} is not a model folder: it has no tokenizer.json")
    return Setup(model, args.blas_threads, tuple(args.settings), args.quiet_launch)


def run_rounds(
    count: int,
    one_round: Callable[[int], list[Row]],
    report: Callable[[list[Row], str], None],
) -> None:
    """Report the rows of all rounds, with words that say how many they are.

    If a round fails or is interrupted, the whole ones before it are reported first.
    """
    rows: list[Row] = []
    done = 0
    try:
        for number in range(count):
            rows += [{**row, "round": number} for row in one_round(number)]
            done += 1
    finally:
        if done:
            report(rows, f"medians of {done} round{'s' * (done > 1)}")


def say(line: str) -> None:
    """Progress goes to stderr: stdout is for the results."""
    print(line, file=sys.stderr, flush=True)


def run(main: Callable[[], None]) -> int:
    """The exit status of a benchmark; failures that have a reason are shown without a traceback.

    A request to end, as `timeout` sends it, stops the servers that were started.
    """
    end_once()
    return program.run(partial(_explained, main))


def _explained(main: Callable[[], None]) -> int:
    try:
        main()
    except BrokenPipeError:
        raise
    except (ServerFailed, ModelError, httpx.HTTPError, OSError) as error:
        say(f"error: {error}")
        return 1
    return 0
