"""The end of a program: when nobody reads any more, when it is interrupted, and when it is neither."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from config.program import INTERRUPTED, READER_GONE

ROOT = Path(__file__).parents[2]
DEADLINE = 120.0  # seconds; one imports MLX
INTERRUPTIBLE = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
PROGRAM = "import sys; from config.program import run; sys.exit(run(lambda: {}))"

# Started by another program of this project, which reads what they say until they end.
CHILDREN = {
    "launcher/mlx_launch.py",
    "scripts/benchlib/door.py",
    "scripts/benchlib/gateway.py",
    "server/standby/__main__.py",
    "server/templating/child.py",
    "server/tls/tunnel/__main__.py",
}


def left_alone(*arguments: str, output: str = "stdout") -> tuple[int, str]:
    """Status of a program of which nobody reads this output, and what it says on the other one."""
    reader, unread = os.pipe()
    os.close(reader)
    read = "stderr" if output == "stdout" else "stdout"
    try:
        ended = subprocess.run(
            [sys.executable, *arguments],
            cwd=ROOT,
            env={k: v for k, v in os.environ.items() if k != "PYTHONUNBUFFERED"},
            text=True,
            timeout=DEADLINE,
            check=False,
            **{output: unread, read: subprocess.PIPE},  # type: ignore[call-overload]
        )
    finally:
        os.close(unread)
    said: str = getattr(ended, read)
    return ended.returncode, said


@pytest.mark.parametrize(
    "work",
    [
        "print('x')",
        "print('x', flush=True)",
        "print('x' * 10**6)",
        "sys.exit(print('x'))",
        "print('x') or sys.exit('error: y')",
    ],
)
def test_without_a_reader_it_ends_without_a_word(work: str) -> None:
    assert left_alone("-c", PROGRAM.format(work)) == (READER_GONE, "")


def test_the_reader_of_errors_may_be_gone_as_well() -> None:
    work = "print('x', file=sys.stderr)"
    assert left_alone("-c", PROGRAM.format(work), output="stderr") == (READER_GONE, "")


def test_a_fault_is_told_though_nobody_reads_the_output() -> None:
    status, said = left_alone("-c", PROGRAM.format("print('x') or 1 / 0"))
    assert status == 1
    assert said.endswith("ZeroDivisionError: division by zero\n")


def test_another_pipe_that_breaks_is_a_fault() -> None:
    work = "(_ for _ in ()).throw(BrokenPipeError('of a socket'))"
    ended = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(work)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
    )
    assert ended.returncode == 1
    assert ended.stderr.endswith("BrokenPipeError: of a socket\n")


@pytest.mark.parametrize(
    ("work", "status"),
    [("None", 0), ("3", 3), ("sys.exit(4)", 4), ("signal.raise_signal(2)", INTERRUPTED)],
)
def test_otherwise_the_status_is_its_own(work: str, status: int) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", INTERRUPTIBLE + PROGRAM.format(work)],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        timeout=DEADLINE,
        check=False,
    )
    assert (ended.returncode, ended.stderr) == (status, b"")


@pytest.mark.parametrize(
    "program",
    [
        ["-m", "server", "--print-config"],
        ["-m", "launcher", "--print-config"],
        ["-m", "pipeline.plan", "--help"],
    ],
)
def test_programs_of_this_project_do(program: list[str]) -> None:
    assert left_alone(*program) == (READER_GONE, "")


def test_all_of_them_do() -> None:
    """But those that only another program starts."""
    found = {
        str(path.relative_to(ROOT)): path.read_text(encoding="utf-8")
        for folder in ("config", "launcher", "pipeline", "scripts", "server")
        for path in (ROOT / folder).rglob("*.py")
    }
    programs = {
        name: text.rpartition('if __name__ == "__main__":\n')[2]
        for name, text in found.items()
        if 'if __name__ == "__main__":\n' in text
    }
    assert programs.keys() > CHILDREN
    without = {
        name for name, end in programs.items() if not re.search(r"program\.run\(|exit\(run\(", end)
    }
    assert without == CHILDREN
