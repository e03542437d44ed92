"""What tests with real ranks need."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import psutil

RANK = str(Path(__file__).with_name("rank.py"))
DEADLINE = 60.0


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def is_running(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
