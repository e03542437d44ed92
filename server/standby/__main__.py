"""python -m server.standby: `python -m server`, begun before anybody knows its rank.

It imports what a rank needs, reads what is small of the model, says so, and waits on standard input without
using the processor: for an assignment (see server.standby.assignment), after which it is a rank like any other,
or for the end, with which it ends.  Until then it joins no ring and opens no port, and what it has read counts
only as far as it still holds.
"""

from __future__ import annotations

from server import launch_files

if __name__ == "__main__":
    launch_files.remove()  # before it takes any time: there is nothing in them that it would need

import argparse
import os
import select
import sys
import time
import tty
from importlib import import_module

from config import ConfigError, add_arguments, from_arguments
from server import exit_status
from server.__main__ import end, fatal, main, prepare
from server.closing import unwinding
from server.standby.assignment import (
    LEASE,
    Assignment,
    AssignmentError,
    Word,
    read_assignment,
    said,
)

IMPORTS = ("server.process", "server.leader")
HEAD_START = 0.15
"""Seconds for rank 0 to listen: MLX's last rank calls it at once, and again only a second later."""
LONGEST = 1 << 20  # bytes of an assignment


def stand_by(arguments: list[str]) -> int:
    """Exit status, as of `server.__main__.main`; 0 also if this process was not needed."""
    place = int(os.environ["MLX_RANK"])
    problem = prepare()
    if problem:
        return fatal(problem, exit_status.STARTUP)
    for module in IMPORTS:
        import_module(module)
    spare = import_module("server.templating.renderer").SPARE
    spare.start()  # for rank 0, whose start waits for it
    with unwinding():
        read_ahead(arguments)
    take_any_line(0)
    print(said(place, Word.WARM), flush=True)
    try:
        assignment = wait(0)
    except AssignmentError as error:
        return fatal(str(error), exit_status.STARTUP)
    rank = None if assignment is None else assignment.rank_at(place)
    if assignment is None or rank is None:
        return exit_status.ORDERLY
    take_place(assignment, rank)
    print(said(place, Word.TAKEN), flush=True)
    if rank > 0:
        spare.drop()
    if 0 < rank == len(assignment.places) - 1:
        time.sleep(HEAD_START)
    return main([*arguments, *assignment.arguments])


def read_ahead(arguments: list[str]) -> None:
    """All of the model but its weights.  What is wrong with it is told by the rank that needs it."""
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    model = import_module("pipeline.served_model")
    tokenizer = import_module("server.api.tokenizer")
    try:
        config = from_arguments(parser.parse_args(arguments), os.environ).config
        checkpoint = model.open_ahead(config)
        trusted = config.model.trust_remote_code
        tokenizer.read_ahead(checkpoint.path, checkpoint.config, trusted)
    except (ConfigError, import_module("pipeline.errors").ModelError):
        return


def wait(descriptor: int, lease: float = LEASE) -> Assignment | None:
    """The assignment; None at the end of input, or when nothing has come for `lease` seconds.

    A host that was cut off gets no end of input, and would keep its process.  Raises AssignmentError.
    """
    text = b""
    until = time.monotonic() + lease
    while select.select([descriptor], [], [], max(0.0, until - time.monotonic()))[0]:
        try:
            data = os.read(descriptor, 65536)
        except OSError:  # of a terminal that has hung up
            return None
        if not data:
            return None
        until = time.monotonic() + lease
        *lines, text = (text + data).split(b"\n")
        for line in filter(bytes.strip, lines):
            return read_assignment(line)
        if len(text) > LONGEST:
            raise AssignmentError(f"the assignment on standard input has more than {LONGEST} bytes")
    return None


def take_any_line(descriptor: int) -> None:
    """A terminal, as ssh gives it, has a longest line otherwise: of 1024 bytes on macOS."""
    if os.isatty(descriptor):
        tty.setcbreak(descriptor)


def take_place(assignment: Assignment, rank: int) -> None:
    """What mlx.launch would have set for this rank; MLX and `server` read it later."""
    launch_files.replace(assignment.hostfile)
    os.environ["MLX_RANK"] = str(rank)


if __name__ == "__main__":
    end(stand_by(sys.argv[1:]))
