"""Signals to everything that was started in one session.

A job runs in a session of its own. mpirun puts each rank in a process group of its own, so the group
does not reach them; the session does, whatever became of their parents.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Collection

import psutil

KILL_TIMEOUT = 5.0  # seconds
KILL_PAUSE = 0.02  # seconds for killed processes to end before the next look


def members(session: int) -> list[int]:
    """Ids of the processes in `session` that have not ended."""
    # macOS lists its kernel as 0, which means "the caller" to getsid and "my whole group" to kill.
    pids = [pid for pid in psutil.pids() if pid > 0]
    return [pid for pid in pids if _session_of(pid) == session and not _has_ended(pid)]


def _session_of(pid: int) -> int | None:
    try:
        return os.getsid(pid)
    except (ProcessLookupError, PermissionError):
        return None  # gone, or another user's


def _has_ended(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
    except psutil.AccessDenied:
        return False  # it is there, or there would be nothing to deny


def signal_session(session: int, number: signal.Signals, spare: Collection[int] = ()) -> set[int]:
    """Send a signal to every member but those in `spare`; returns to whom."""
    pids = set(members(session)).difference(spare)
    for pid in pids:
        _send(pid, number)
    return pids


def _send(pid: int, number: signal.Signals) -> None:
    # It ended by itself, or it runs as somebody else.
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, number)


def kill_session(session: int, spare: Collection[int] = ()) -> None:
    """Kill all members and wait until they have ended.

    Repeated, since a member may start another one between look and kill. Gives up on what does not end
    within KILL_TIMEOUT: the kernel holds it or it is another user's, and no signal helps.
    """
    deadline = time.monotonic() + KILL_TIMEOUT
    while set(members(session)).difference(spare) and time.monotonic() < deadline:
        signal_session(session, signal.SIGKILL, spare)
        time.sleep(KILL_PAUSE)
