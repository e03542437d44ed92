"""mlx.launch, made fit to run unattended: `python -m launcher.mlx_launch GRACE [--standby] ARGUMENTS...`

The only file of this package that imports MLX. It differs in these things from mlx.launch itself. The files
that it makes for a rank of the ring are removed, see launcher.rank_files. It sleeps while its ranks are
quiet: mlx.launch selects on pipes that are always writable, and so uses a whole core. It stops its ranks
when its stdin closes, so that they don't outlive a launcher that was killed: first a request (SIGTERM), and
GRACE seconds later SIGKILL. And its exit status tells when mpirun failed; for the ring, mlx.launch writes
the ranks' fate to stderr and exits 0 in any case.

With --standby, the ranks are of `server.standby`: what stdin says before it closes is for them.

It must lead a session of its own, since that is what gets stopped.
"""

from __future__ import annotations

import contextlib
import os
import select
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any

from mlx._distributed_utils import launch

from launcher.rank_files import PREPARE, kill_script
from launcher.session import kill_session, members, signal_session
from launcher.waiting_ranks import Fate, WaitingRanks

REMOTE_KILL_TIMEOUT = 5.0  # seconds; an unreachable host would hold up ssh for minutes
END_PAUSE = 0.05  # seconds; between two looks whether a rank that has closed its output has ended
ASK_PAUSE = 0.2  # seconds; between two looks for ranks that were just being started
_ORIGINAL = launch.RemoteProcess


class Commands:
    """Stands in for `subprocess.run` inside mlx.launch: mpirun is remembered, the rest bounded."""

    def __init__(self) -> None:
        self.mpirun: subprocess.Popen[bytes] | None = None
        self.stopping = False

    def run(self, arguments: Any, **options: Any) -> subprocess.CompletedProcess[Any]:
        if options:
            return self._run_bounded(arguments, **options)
        self.mpirun = subprocess.Popen(arguments)
        return subprocess.CompletedProcess(arguments, self.mpirun.wait())

    def _run_bounded(self, arguments: Any, **options: Any) -> subprocess.CompletedProcess[Any]:
        check = options.pop("check", False)
        try:
            done = subprocess.run(arguments, timeout=REMOTE_KILL_TIMEOUT, check=False, **options)
        except subprocess.TimeoutExpired:
            reason = f"no answer within {REMOTE_KILL_TIMEOUT:g} s"
            done = subprocess.CompletedProcess(arguments, 255, "", reason)
        if isinstance(arguments, str):  # for a shell: ends one rank
            _tell_unconfirmed(arguments, done)
        elif check:
            done.check_returncode()
        return done

    @property
    def spared(self) -> set[int]:
        """Who gets no request to stop: mpirun would kill its ranks before they could obey theirs."""
        return {os.getpid()} | ({self.mpirun.pid} if self.mpirun else set())

    @property
    def status(self) -> int:
        """mpirun's exit status as a shell tells it; 0 when it was not used."""
        code = self.mpirun.returncode if self.mpirun else 0
        return code if code >= 0 else 128 - code


def _tell_unconfirmed(command: str, done: subprocess.CompletedProcess[str]) -> None:
    """Say that a rank on another host may still run.

    Of a local rank there is nothing to say: it is gone already, and the session's end makes sure of it.
    """
    words = shlex.split(command)
    if done.returncode and words[0] == "ssh":
        reasons = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        said = f"note: {words[1]} did not confirm the end of its rank: {reasons[-1]}"
        with contextlib.suppress(BrokenPipeError):  # nobody listens any more
            print(said, file=sys.stderr, flush=True)


def wait_readable(
    reading: Sequence[int], writing: Sequence[int], exceptional: Sequence[int], timeout: float
) -> tuple[list[int], list[int], list[int]]:
    """`select.select` for mlx.launch's loops, without the pipes to the ranks: nobody types to them.

    A rank's output closes an instant before it can be waited for: mlx.launch would look again a second later.
    """
    if not reading:
        timeout = min(timeout, END_PAUSE)
    return select.select(reading, [], exceptional, timeout)


def read_to_end(descriptor: int) -> None:
    while os.read(descriptor, 4096):
        pass


def stop_when_closed(
    descriptor: int, follow: Callable[[int], None], commands: Commands, grace: float
) -> None:
    """`follow` a descriptor to its end, then stop the session within `grace` seconds."""
    try:
        follow(descriptor)
    finally:  # whatever broke: nothing outlives the launcher
        _stop(commands, grace)


def _stop(commands: Commands, grace: float) -> None:
    """End the session: a request first, force when `grace` seconds are over."""
    ask_to_stop(commands, grace)
    left = len(set(members(os.getsid(0))) - commands.spared)
    if left:
        text = f"unresponsive: {left} processes did not stop within {grace:g} s and were killed"
        # Said first: with its ranks gone, the main thread ends this process.
        with contextlib.suppress(BrokenPipeError):  # nobody listens any more
            print(text, file=sys.stderr, flush=True)
    kill_session(os.getsid(0), {os.getpid()})


def ask_to_stop(commands: Commands, grace: float) -> None:
    """Send SIGTERM once to each process of the session, also to those that start within `grace` seconds."""
    commands.stopping = True
    deadline = time.monotonic() + grace
    asked: set[int] = set()
    while time.monotonic() < deadline:
        asked |= signal_session(os.getsid(0), signal.SIGTERM, asked | commands.spared)
        time.sleep(min(ASK_PAUSE, grace))


def replace_stdin() -> int:
    """Give fd 0 a pipe that is never readable and that closes with this process; return the old one.

    mlx.launch polls fd 0, and mpirun hands it to rank 0.
    """
    original = os.dup(0)
    reading, writing = os.pipe()
    os.dup2(reading, 0)
    os.close(reading)
    assert not os.get_inheritable(writing)
    return original


def note_signal(number: int, frame: FrameType | None) -> None:
    """Do nothing: stdin says when to stop. A handler, as ranks would inherit an ignored signal."""


class TidyProcess(launch.RemoteProcess):  # type: ignore[misc]
    """A rank of the ring whose files have a folder of their own."""

    @staticmethod
    def make_launch_script(*arguments: Any) -> str:
        return PREPARE + str(_ORIGINAL.make_launch_script(*arguments))

    @staticmethod
    def make_kill_script(pidfile: str | None) -> str:
        return kill_script(pidfile) or str(_ORIGINAL.make_kill_script(pidfile))


def let_wait(ranks: WaitingRanks) -> None:
    """Have mlx.launch start its ranks as those of `ranks`."""

    class WaitingProcess(TidyProcess):
        def __init__(self, rank: int, *arguments: Any) -> None:
            super().__init__(rank, *arguments)
            self._place = rank
            ranks.started(rank, self.process)

        @property
        def exit_status(self) -> Fate:
            return ranks.fate(self._place, super().exit_status)

    launch.RemoteProcess = WaitingProcess


def main() -> int:
    grace = float(sys.argv.pop(1))
    follow = read_to_end
    launch.RemoteProcess = TidyProcess
    if sys.argv[1:2] == ["--standby"]:
        sys.argv.pop(1)
        ranks = WaitingRanks()
        let_wait(ranks)
        follow = ranks.follow
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, note_signal)
    commands = Commands()
    threading.Thread(
        target=stop_when_closed, args=(replace_stdin(), follow, commands, grace), daemon=True
    ).start()
    launch.select = wait_readable
    launch.run = commands.run
    try:
        launch.main()
    except subprocess.CalledProcessError:  # a short command got the request to stop
        if not commands.stopping:
            raise
    return commands.status


if __name__ == "__main__":
    sys.exit(main())
