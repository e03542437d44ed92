"""Real jobs of mlx.launch, with small ranks that stop, fail or refuse to stop."""

from __future__ import annotations

import gc
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest

from launcher.hostfile import HostfileError, local_hostfile
from launcher.job import Job, JobSpec, LineBuffer
from launcher.outcome import Outcome, RankFailure
from tests.launcher.processes import DEADLINE, RANK, is_running, wait_for

COUNTING = str(Path(__file__).with_name("counting_launch.py"))
UP = re.compile(r"up (\d+) (\d+)")
BACKENDS = ["ring", "mpi"]

pytestmark = pytest.mark.ranks


@dataclass
class Run:
    """A job in a thread, and what it has said."""

    spec: JobSpec
    lines: list[str] = field(default_factory=list)
    outcome: Outcome | None = None

    def __post_init__(self) -> None:
        self.job = Job(self.spec, lambda line, is_error: self.lines.append(line))
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        self.outcome = self.job.run()

    @property
    def text(self) -> str:
        """All output; mpirun may break a line where another rank's begins."""
        return "\n".join(self.lines)

    @property
    def ranks(self) -> list[int]:
        return sorted(int(rank) for rank, _ in UP.findall(self.text))

    @property
    def pids(self) -> list[int]:
        return [int(pid) for _, pid in UP.findall(self.text)]

    def finish(self) -> Outcome:
        self.thread.join(DEADLINE)
        assert self.outcome is not None
        return self.outcome


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Callable[..., Run]]:
    runs: list[Run] = []

    def start(behaviour: str, backend: str = "ring", ranks: int = 3, grace: float = 20.0) -> Run:
        hostfile = tmp_path / "hostfile.json"
        hostfile.write_text(local_hostfile(ranks))
        command = (sys.executable, RANK, behaviour)
        runs.append(Run(JobSpec(command, hostfile, backend, grace=grace)))
        return runs[-1]

    yield start
    for started in runs:
        started.job.stop()
        started.job.stop()
        started.finish()
        assert not [pid for pid in started.pids if is_running(pid)]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("ranks", [1, 3])
def test_a_job_that_finishes(run: Callable[..., Run], backend: str, ranks: int) -> None:
    job = run("finish", backend, ranks)
    assert job.finish() == Outcome(0)
    assert job.ranks == list(range(ranks))


@pytest.mark.parametrize("backend", BACKENDS)
def test_stop_lets_every_rank_end_in_order(run: Callable[..., Run], backend: str) -> None:
    job = run("graceful", backend)
    wait_for(lambda: len(job.pids) == 3)
    job.job.stop()
    assert job.finish() == Outcome(0, stopped=True)
    assert job.text.count("stopping in order") == 3


@pytest.mark.parametrize("backend", BACKENDS)
def test_ranks_that_will_not_stop_are_killed(run: Callable[..., Run], backend: str) -> None:
    job = run("stubborn", backend, grace=1.0)
    wait_for(lambda: len(job.pids) == 3)
    job.job.stop()
    outcome = job.finish()
    assert outcome.status == 1
    assert outcome.reasons == ("3 processes did not stop within 1 s and were killed",)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("pause", [0.0, 0.2, 0.5, 1.0])
def test_ranks_that_are_just_starting_stop_too(
    run: Callable[..., Run], backend: str, pause: float
) -> None:
    """Whatever mlx.launch is at after these pauses; most of it is over after the last one."""
    job = run("sleep", backend, grace=DEADLINE)
    time.sleep(pause)
    job.job.stop()
    assert job.finish() == Outcome(0, stopped=True)
    assert "Traceback" not in job.text


def test_a_stop_before_mpirun_has_been_found_is_quiet(
    run: Callable[..., Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """mlx.launch asks `which` for it, and gets the request to stop in its place."""
    which = tmp_path / "which"
    which.write_text(f"#!/bin/sh\ntouch {tmp_path}/asked\nexec sleep 600\n")
    which.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    job = run("sleep", "mpi")
    wait_for((tmp_path / "asked").exists)
    job.job.stop()
    assert job.finish() == Outcome(0, stopped=True)
    assert "Traceback" not in job.text


def test_a_second_stop_does_not_wait(run: Callable[..., Run]) -> None:
    job = run("stubborn", grace=10 * DEADLINE)
    wait_for(lambda: len(job.pids) == 3)
    job.job.stop()
    job.job.stop()
    assert job.finish().stopped


def test_a_failed_rank_ends_the_job_with_its_sentence(run: Callable[..., Run]) -> None:
    expected = Outcome(5, ("layer 7 is missing",), RankFailure(1, 5))
    assert run("fail").finish() == expected


def test_a_failed_rank_does_not_block_mpi(run: Callable[..., Run]) -> None:
    """Rank 1 hangs in MPI's finalize, which waits for the others; its status is lost, not its words."""
    outcome = run("fail", "mpi").finish()
    assert outcome.reasons == ("layer 7 is missing",)
    assert outcome.status != 0


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_crashed_rank_ends_the_job(run: Callable[..., Run], backend: str) -> None:
    outcome = run("crash", backend).finish()
    assert outcome.status != 0
    assert outcome.reasons
    if backend == "ring":
        assert outcome.first_failure == RankFailure(1, -signal.SIGKILL)


def test_a_job_leaves_no_descriptor_open(run: Callable[..., Run], tmp_path: Path) -> None:
    def descriptors() -> int:
        return psutil.Process().num_fds()

    def one_job() -> None:
        run("finish").finish()
        with pytest.raises(HostfileError):
            Job(JobSpec(("true",), tmp_path / "none.json"), print).run()

    one_job()  # whatever is opened once and kept
    before = descriptors()
    gc.disable()  # it would close what was forgotten
    try:
        for _ in range(3):
            one_job()
        assert descriptors() == before
    finally:
        gc.enable()


def test_a_stop_after_the_end_reaches_nobody(run: Callable[..., Run]) -> None:
    job = run("finish")
    job.finish()
    taken = [socket.socketpair() for _ in range(8)]  # the numbers that the job has given back
    job.job.stop()
    for end in (end for pair in taken for end in pair):
        end.setblocking(False)
        with pytest.raises(BlockingIOError):
            end.recv(1)
    for end in (end for pair in taken for end in pair):
        end.close()


def test_an_mlx_launch_that_does_not_end_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when the kernel holds it: nobody kills this one."""
    monkeypatch.setattr("launcher.job.KILL_TIMEOUT", 0.05)
    job = Job(JobSpec(("true",), tmp_path / "hosts.json"), print)
    with subprocess.Popen(["/bin/sleep", "600"]) as process:
        status = job._status(process)
        process.kill()
    outcome = job._transcript.outcome(status)
    assert outcome.status == 1
    assert f"process {process.pid}, does not end" in outcome.reasons[0]


def test_waiting_wakes_mlx_launch_rarely(tmp_path: Path) -> None:
    """mlx.launch by itself looks at its pipes as often as the processor can."""
    hostfile = tmp_path / "hosts.json"
    hostfile.write_text(local_hostfile(3))
    arguments = ["--hostfile", str(hostfile), "--backend", "ring", "--", sys.executable, RANK]
    reading, writing = os.pipe()  # open until the end: its end would stop the ranks
    command = [sys.executable, COUNTING, "1", *arguments, "pause"]
    try:
        done = subprocess.run(
            command,
            stdin=reading,
            capture_output=True,
            text=True,
            timeout=DEADLINE,
            start_new_session=True,
            check=True,
        )
    finally:
        os.close(reading)
        os.close(writing)
    [looks] = re.findall(r"looks a second: (.*)", done.stdout)
    assert 0 < float(looks) < 100


def test_lines_are_put_together_from_pieces() -> None:
    buffer = LineBuffer()
    pieces = [b"a", b"b\nc\r\n", "ü".encode()[:1], "ü".encode()[1:] + b"\n\nrest", b""]
    lines = [line for piece in pieces for line in buffer.lines(piece)]
    assert lines == ["ab", "c", "ü", "", "rest"]


def test_once_the_ranks_have_served_nobody_waits_for_those_that_are_left(
    run: Callable[..., Run],
) -> None:
    job = run("stubborn", grace=10 * DEADLINE)
    wait_for(lambda: len(job.pids) == 3)
    job.job.serving()
    victim = next(int(pid) for rank, pid in UP.findall(job.text) if rank == "1")
    os.kill(victim, signal.SIGKILL)
    assert job.finish().first_failure == RankFailure(1, -signal.SIGKILL)


def test_no_temporary_file_is_left(
    run: Callable[..., Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    monkeypatch.setenv("TMPDIR", str(folder))
    job = run("finish")
    wait_for(lambda: len(job.pids) == 3)
    assert job.finish() == Outcome(0)
    assert not list(folder.iterdir())
