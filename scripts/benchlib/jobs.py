"""Ranks under launcher.job that measure something, end, and leave one result on rank 0."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import msgspec

from benchlib.servers import LOG_TAIL, ServerFailed

T = TypeVar("T")

_RESULT = "benchmark-result: "  # starts the one line of rank 0 that holds it


def print_result(result: object) -> None:
    """On rank 0: what `run_job` returns."""
    print(_RESULT + msgspec.json.encode(result).decode(), flush=True)


def run_job(
    command: Sequence[str], environment: Mapping[str, str], kind: type[T], deadline: float
) -> T:
    """Run a job to its end, at most `deadline` seconds; the result that rank 0 has printed.

    Raises ServerFailed, with what the ranks said, if they don't end in time or without a result.
    """
    try:
        done = subprocess.run(
            command,
            cwd=Path(__file__).parents[2],
            env=environment,
            capture_output=True,
            text=True,
            timeout=deadline,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise ServerFailed(f"the ranks did not end within {deadline:g} s") from None
    for line in done.stdout.splitlines():
        if line.startswith(_RESULT):
            return msgspec.json.decode(line.removeprefix(_RESULT), type=kind)
    said = "\n".join((done.stdout + done.stderr).splitlines()[-LOG_TAIL:])
    raise ServerFailed(f"the ranks ended with status {done.returncode}:\n{said}")
