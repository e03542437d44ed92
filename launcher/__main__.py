"""Serve one model over several nodes, and go on when one of them fails: `python -m launcher`.

Takes all arguments of `python -m server`, and where to run it.  `python -m launcher COMMAND --help` tells what
can be asked of a launcher that runs.
"""

from __future__ import annotations

import signal

if __name__ == "__main__":
    # Ctrl-C during the imports ends this process as quietly as any other program.
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import sys

from config import program
from launcher.commands import COMMANDS
from launcher.serve import main as serve


def main(arguments: list[str]) -> int:
    """Exit status: 0 after an orderly stop, 1 if it can't serve, 2 for arguments that make no sense."""
    command = COMMANDS.get(arguments[0]) if arguments else None
    return serve(arguments) if command is None else command.run(arguments[1:])


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.exit(program.run(lambda: main(sys.argv[1:])))
