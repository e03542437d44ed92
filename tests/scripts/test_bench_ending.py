"""What a benchmark started is stopped, however often it is asked to end."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"
PROGRAM = """
import signal, sys
from benchlib.options import run

for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # which the tests may have to ignore
    signal.signal(number, signal.SIG_DFL)

class Server:
    def __enter__(self): pass
    def __exit__(self, *_):
        print("stopping", flush=True)
        sys.stdin.readline()  # until it has been asked again
        print("stopped", flush=True)

def main():
    with Server():
        print("started", flush=True)
        sys.stdin.readline()

sys.exit(run(main))
"""


@pytest.mark.parametrize(
    ("first", "status"),
    [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)],
)
def test_another_request_to_end_does_not_interrupt_the_first(
    first: signal.Signals, status: int
) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM],
        cwd=SCRIPTS,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin
        assert process.stdout
        assert process.stdout.readline() == "started\n"
        process.send_signal(first)
        assert process.stdout.readline() == "stopping\n"
        for again in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            process.send_signal(again)
        process.stdin.write("go on\n")
        process.stdin.flush()
        assert process.stdout.read() == "stopped\n"
        assert process.wait(60) == status
