"""python -m launcher.doctor: check the nodes of a hostfile, and say what to mend."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from config import ConfigError, add_arguments, from_arguments, program, render
from launcher.doctor import report
from launcher.doctor.checks import Status, judge
from launcher.doctor.question import Place, Question
from launcher.doctor.survey import take
from launcher.hostfile import LOCAL, HostfileError, check_ranks, read_hostfile
from launcher.job import STARTING_PORT

EXIT_FAILED, EXIT_USAGE = 1, 2


def add_doctor_arguments(parser: argparse.ArgumentParser) -> None:
    where = parser.add_mutually_exclusive_group()
    where.add_argument(
        "--hostfile", type=Path, default=Path("hostfile.json"), help="default: %(default)s"
    )
    where.add_argument("--ranks", type=int, metavar="N", help="N ranks on this machine")
    parser.add_argument("--starting-port", type=int, default=STARTING_PORT, metavar="PORT")
    parser.add_argument("--json", action="store_true", help="for programs")
    add_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Exit status: 0 when nothing fails, 1 when something does, 2 when nothing could be checked."""
    try:
        if arguments.print_config:
            print(render(from_arguments(arguments, os.environ)))
            return 0
        question = ask_for(arguments)
    except (ConfigError, HostfileError) as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_USAGE
    checks = judge(take(question))
    print(report.as_json(checks) if arguments.json else report.text(checks))
    return EXIT_FAILED if any(check.status is Status.FAIL for check in checks) else 0


def ask_for(arguments: argparse.Namespace) -> Question:
    """Raises ConfigError and HostfileError."""
    config = from_arguments(arguments, os.environ).config
    if arguments.ranks is None:
        hostfile = read_hostfile(arguments.hostfile)
        hosts, addresses = hostfile.hosts, hostfile.addresses
    else:
        check_ranks(arguments.ranks)
        hosts = (LOCAL,) * arguments.ranks
        addresses = ((LOCAL,),) * arguments.ranks
    nodes = config.nodes_of(len(hosts))
    places = tuple(Place(*parts) for parts in zip(nodes, hosts, addresses, strict=True))
    return Question(
        config,
        places,
        arguments.starting_port,
        arguments.config,
        tuple(arguments.set),
        arguments.model,
        arguments.port,
    )


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m launcher doctor", description=__doc__)
    add_doctor_arguments(parser)
    return run(parser.parse_args(arguments))


if __name__ == "__main__":
    sys.exit(program.run(main))
