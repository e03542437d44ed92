"""Inside the process of mlx.launch: ranks that wait until they are told what they are.

mlx.launch ends all ranks when one of them fails.  One that waits, or that was left out, must not have that
effect: its host may be the very reason why the others are needed.
"""

from __future__ import annotations

import os
import select
import subprocess
import sys
import threading
from contextlib import suppress

from server.standby.assignment import (
    KEEP_ALIVE,
    Assignment,
    AssignmentError,
    Word,
    read_assignment,
    said,
)

LEAVE = 5.0  # seconds for those that are not needed to end by themselves; ssh to a lost host won't

ROOM = 1.0  # seconds for a process to read what is in its pipe

Fate = tuple[int | None, bool]
"""Exit status and whether it was killed, as mlx.launch has them."""


class WaitingRanks:
    """The ranks of one job by their place in its hostfile.  Used by several threads."""

    def __init__(self) -> None:
        self._processes: dict[int, subprocess.Popen[bytes]] = {}
        self._assigned: Assignment | None = None
        self._lock = threading.Lock()

    def started(self, place: int, process: subprocess.Popen[bytes]) -> None:
        with self._lock:
            self._processes[place] = process

    def fate(self, place: int, fate: Fate) -> Fate:
        """What mlx.launch is to think has become of a process; it asks once, at the end of each."""
        with self._lock:
            if self._assigned is None:
                say(said(place, Word.GONE))
            elif self._assigned.rank_at(place) is not None:
                return fate
        return (None, False) if fate[0] is None else (0, False)

    def follow(self, descriptor: int) -> None:
        """Pass on the assignment that comes from `descriptor`, until its end."""
        text = b""
        patience: float | None = KEEP_ALIVE
        while True:
            if not select.select([descriptor], [], [], patience)[0]:
                patience = self._nothing_came()
                continue
            data = os.read(descriptor, 65536)
            if not data:
                return
            *lines, text = (text + data).split(b"\n")
            for line in lines:
                self._assign(line + b"\n")
                patience = LEAVE

    def _nothing_came(self) -> float | None:
        """How long to wait for more."""
        with self._lock:
            if self._assigned is None:
                self._tell(b"\n")
                return KEEP_ALIVE
            for place, process in self._processes.items():
                if self._assigned.rank_at(place) is None and process.poll() is None:
                    process.terminate()
            return None

    def _assign(self, line: bytes) -> None:
        try:
            assignment = read_assignment(line)
        except AssignmentError as error:
            say(f"fatal: {error}")
            return
        with self._lock:
            self._assigned = assignment
            self._tell(line)

    def _tell(self, line: bytes) -> None:
        """Not through mlx.launch, which would look for something to write once a second."""
        for process in self._processes.values():
            assert process.stdin is not None
            # Full: it has read nothing for an hour.  Broken: it has ended.  Either is noticed by its silence.
            with suppress(BlockingIOError, BrokenPipeError):
                _write(process.stdin.fileno(), line)


def _write(descriptor: int, data: bytes) -> None:
    """All of it, though mlx.launch has made the pipe one that does not block.

    Raises BlockingIOError if nobody makes room.
    """
    while data:
        if not select.select([], [descriptor], [], ROOM)[1]:
            raise BlockingIOError
        data = data[os.write(descriptor, data) :]


def say(line: str) -> None:
    with suppress(BrokenPipeError):  # nobody listens any more
        print(line, file=sys.stderr, flush=True)
