"""Running out of file descriptors makes callers wait; it must not fill the log."""

from __future__ import annotations

import asyncio
import errno
import resource
import subprocess
import sys

import pytest
import structlog

from server import descriptors


def test_the_soft_limit_becomes_the_hard_one() -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, before[1]))
        descriptors.raise_limit()
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (before[1], before[1])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_no_limit_is_no_limit_to_keep(monkeypatch: pytest.MonkeyPatch) -> None:
    unlimited = resource.RLIM_INFINITY
    limits = {"now": (256, unlimited)}
    monkeypatch.setattr(resource, "getrlimit", lambda _: limits["now"])
    monkeypatch.setattr(resource, "setrlimit", lambda _, wanted: limits.update(now=wanted))
    descriptors.raise_limit()
    assert limits["now"] == (descriptors.PLENTY, unlimited)
    assert descriptors.limit() == descriptors.PLENTY
    limits["now"] = (unlimited, unlimited)
    descriptors.raise_limit()
    assert limits["now"] == (unlimited, unlimited)
    assert descriptors.limit() == descriptors.PLENTY


def test_the_raised_limit_survives_what_a_rank_imports() -> None:
    code = (
        "import resource, server.process; from server import descriptors; descriptors.raise_limit();"
        "print(*resource.getrlimit(resource.RLIMIT_NOFILE))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True
    )
    soft, hard = map(int, done.stdout.split())
    assert soft == hard >= 4096


def test_exhaustion_is_logged_once_and_other_faults_always() -> None:
    others: list[object] = []

    async def scenario() -> list[str]:
        loop = asyncio.get_running_loop()
        loop.default_exception_handler = others.append  # type: ignore[method-assign, assignment]
        descriptors.answer_exhaustion_calmly(loop)
        with structlog.testing.capture_logs() as lines:
            for _ in range(500):
                error = OSError(errno.EMFILE, "Too many open files")
                loop.call_exception_handler({"message": "accept", "exception": error})
            for _ in range(3):
                loop.call_exception_handler({"message": "bug", "exception": ValueError("x")})
        return [line["event"] for line in lines]

    assert asyncio.run(scenario()) == ["connections have to wait"]
    assert len(others) == 3
