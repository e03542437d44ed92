"""`python -m launcher.job` as a command: its arguments, its signals, its last line, its exit status."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from launcher.hostfile import Hostfile
from launcher.job import Job, JobError, JobSpec, stopped_by_signals
from launcher.session import members
from tests.launcher.processes import DEADLINE, RANK, is_running, wait_for

pytestmark = pytest.mark.ranks


@contextmanager
def runner(behaviour: str, *arguments: str) -> Iterator[tuple[subprocess.Popen[str], list[int]]]:
    """`python -m launcher.job` over two ranks, once those are up."""
    command = [sys.executable, "-m", "launcher.job", "--ranks", "2", *arguments]
    command += ["--", sys.executable, RANK, behaviour]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout
    pids = [int(process.stdout.readline().split()[2]) for _ in range(2)]
    session = os.getsid(pids[0])
    try:
        yield process, pids
    finally:
        process.kill()
        process.communicate()
        wait_for(lambda: not members(session))


def test_nothing_outlives_a_runner_that_was_killed() -> None:
    with runner("stubborn", "--grace", "1") as (process, pids):
        process.kill()
        wait_for(lambda: not any(is_running(pid) for pid in pids))


def test_nothing_outlives_an_mlx_launch_that_was_killed() -> None:
    with runner("stubborn") as (process, pids):
        os.kill(os.getsid(pids[0]), signal.SIGKILL)
        _, errors = process.communicate(timeout=DEADLINE)
        assert process.returncode == 1
        assert errors.splitlines()[-1] == "error: mlx.launch was killed by SIGKILL"
        assert not any(is_running(pid) for pid in pids)


@pytest.fixture
def not_under_nohup() -> Iterator[None]:
    """Whatever runs the tests: an ignored hangup would be inherited, and is not heeded."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.usefixtures("not_under_nohup")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals_stop_it_in_order(number: signal.Signals) -> None:
    with runner("graceful") as (process, _):
        process.send_signal(number)
        output, errors = process.communicate(timeout=DEADLINE)
        assert (process.returncode, errors) == (0, "")
        assert output.count("stopping in order") == 2


@pytest.mark.parametrize("ignored", [True, False])
def test_a_hangup_is_not_heeded_under_nohup(tmp_path: Path, ignored: bool) -> None:
    job = Job(JobSpec(("true",), tmp_path / "hosts.json"), print)
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN if ignored else signal.SIG_DFL)
    try:
        with stopped_by_signals(job):
            assert (signal.getsignal(signal.SIGHUP) == signal.SIG_IGN) is ignored
    finally:
        signal.signal(signal.SIGHUP, before)


STUB = """
import pathlib, time
pathlib.Path(__file__).with_name("importing").touch()
time.sleep(600)
"""


def test_an_interrupt_during_the_imports_is_quiet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "psutil.py").write_text(STUB)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    command = [sys.executable, "-m", "launcher.job", "--ranks", "2", "--", "true"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            wait_for((tmp_path / "importing").exists)
            process.send_signal(signal.SIGINT)
            _, errors = process.communicate(timeout=DEADLINE)
        finally:
            process.kill()
    assert (process.returncode, errors) == (-signal.SIGINT, "")


def run_command(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "launcher.job", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE, check=False)


def failed_command(*arguments: str) -> tuple[int, str]:
    done = run_command(*arguments)
    return done.returncode, (done.stderr.splitlines() or [""])[-1]


def test_the_sentence_is_the_last_line() -> None:
    status, last = failed_command("--ranks", "2", "--", sys.executable, RANK, "fail")
    assert (status, last) == (5, "error: layer 7 is missing")


def test_a_missing_hostfile_is_told_at_once(tmp_path: Path) -> None:
    missing = str(tmp_path / "none.json")
    status, last = failed_command("--hostfile", missing, "--", "true")
    assert status == 2
    assert f"{missing}: can't be read" in last


def test_no_ranks_are_refused() -> None:
    status, last = failed_command("--ranks", "0", "--", "true")
    assert status == 2
    assert "--ranks must be at least 1, not 0" in last


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--starting-port", "65534"], "must be between 1 and 65533 for 3 ranks, not 65534"),
        (["--starting-port", "99999"], "must be between 1 and 65533 for 3 ranks, not 99999"),
        (["--starting-port", "0"], "must be between 1 and 65533 for 3 ranks, not 0"),
        (["--starting-port", "-1"], "must be between 1 and 65533 for 3 ranks, not -1"),
        (["--starting-port", "x"], "argument --starting-port: invalid int value: 'x'"),
        (["--grace", "-1"], "--grace must be 0 to 3600 seconds, not -1"),
        (["--grace", "nan"], "--grace must be 0 to 3600 seconds, not nan"),
        (["--backend", "nccl"], "argument --backend: invalid choice: 'nccl'"),
    ],
)
def test_bad_arguments_are_one_sentence(arguments: list[str], complaint: str) -> None:
    command = ["--ranks", "3", *arguments, "--", sys.executable, RANK, "finish"]
    done = run_command(*command)
    assert (done.returncode, done.stdout) == (2, "")
    [line] = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert complaint in line


def test_the_last_possible_starting_port_is_taken() -> None:
    arguments = ["--starting-port", "65533", "--", sys.executable, RANK, "finish"]
    assert run_command("--ranks", "3", *arguments).returncode == 0


def test_every_address_takes_a_port(tmp_path: Path) -> None:
    hostfile = tmp_path / "hosts.json"
    host = {"ssh": "127.0.0.1", "ips": ["127.0.0.1", "127.0.0.2"]}
    hostfile.write_text(json.dumps([host, host]))
    status, last = failed_command(
        "--hostfile", str(hostfile), "--starting-port", "65533", "--", "true"
    )
    assert status == 2
    assert "between 1 and 65532 for 2 ranks, not 65533" in last


def test_a_hostfile_with_another_backend_is_refused(tmp_path: Path) -> None:
    hostfile = tmp_path / "hosts.json"
    hostfile.write_text(
        '{"backend": "jaccl", "hosts": [{"ssh": "127.0.0.1", "ips": ["127.0.0.1"]}]}'
    )
    status, last = failed_command("--hostfile", str(hostfile), "--", "true")
    assert (status, last) == (2, "error: the backend must be ring or mpi, not jaccl")
    assert failed_command("--hostfile", str(hostfile), "--backend", "ring", "--", "true")[0] == 0


def test_mpi_without_mpirun_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    spec = JobSpec(("true",), tmp_path / "hosts.json", "mpi")
    with pytest.raises(JobError, match="needs mpirun"):
        spec.check(Hostfile(("127.0.0.1", "127.0.0.1")))
    spec.check(Hostfile(("127.0.0.1",)))  # a single rank takes no part in MPI
