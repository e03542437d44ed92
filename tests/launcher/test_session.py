"""Sessions of real processes, and what a system may say about them."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator

import psutil
import pytest

from launcher import session
from launcher.session import kill_session, members, signal_session


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    """A process that leads a session of its own."""
    with subprocess.Popen(["/bin/sleep", "600"], start_new_session=True) as process:
        yield process
        process.kill()


def test_the_members_of_a_session_are_killed(sleeper: subprocess.Popen[bytes]) -> None:
    assert members(sleeper.pid) == [sleeper.pid]
    kill_session(sleeper.pid)
    assert members(sleeper.pid) == []
    assert sleeper.wait(10) == -signal.SIGKILL


def test_the_spared_are_left_alone(sleeper: subprocess.Popen[bytes]) -> None:
    kill_session(sleeper.pid, {sleeper.pid})
    signal_session(sleeper.pid, signal.SIGKILL, {sleeper.pid})
    assert members(sleeper.pid) == [sleeper.pid]


def test_process_0_is_nobodys(monkeypatch: pytest.MonkeyPatch) -> None:
    """getsid(0) is the caller's session, and kill(0) would reach this test."""
    signalled: list[int] = []
    monkeypatch.setattr(session, "_has_ended", lambda pid: False)  # macOS can show it
    monkeypatch.setattr(psutil, "pids", lambda: [0, os.getpid()])
    monkeypatch.setattr(os, "kill", lambda pid, number: signalled.append(pid))
    assert members(os.getsid(0)) == [os.getpid()]
    signal_session(os.getsid(0), signal.SIGTERM, {os.getpid()})
    assert signalled == []


def deny(process: psutil.Process) -> str:
    raise psutil.AccessDenied(process.pid)


def test_a_process_that_shows_nothing_is_killed_all_the_same(
    sleeper: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(psutil.Process, "status", deny)
    monkeypatch.setattr(session, "KILL_TIMEOUT", 0.1)
    kill_session(sleeper.pid)
    assert sleeper.wait(10) == -signal.SIGKILL


def test_a_process_that_must_not_be_signalled_is_given_up(
    sleeper: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(pid: int, number: int) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(session, "KILL_TIMEOUT", 0.1)
    with monkeypatch.context() as patched:
        patched.setattr(os, "kill", refuse)
        kill_session(sleeper.pid)
    assert sleeper.poll() is None
