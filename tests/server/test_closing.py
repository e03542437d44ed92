"""Ends are bounded whatever hangs, and a part that fails takes no other with it."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from server.closing import close_all, run_to_end

pytestmark = pytest.mark.anyio

DEADLINE = 60.0  # seconds for a process that should end at once


async def test_all_parts_are_closed_although_one_fails_and_one_hangs() -> None:
    closed: list[str] = []
    cancelled = asyncio.Event()

    async def fails() -> None:
        raise OSError("no such socket")

    async def hangs() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    async def closes() -> None:
        await asyncio.sleep(0)
        closed.append("last")

    parts = {"first": fails(), "second": hangs(), "last": closes()}
    await asyncio.wait_for(close_all(parts, 0.1), DEADLINE)
    assert closed == ["last"]
    await asyncio.wait_for(cancelled.wait(), DEADLINE)


async def test_nothing_to_close() -> None:
    await close_all({}, 0.0)


def test_the_result_and_the_error_of_a_loop() -> None:
    async def fine() -> int:
        return 3

    async def broken() -> None:
        raise ValueError("no")

    assert run_to_end(fine()) == 3
    with pytest.raises(ValueError, match="no"):
        run_to_end(broken())


HANGING = {
    "task": """
async def main():
    async def stubborn():
        while True:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                pass
    task = asyncio.create_task(stubborn())
    await asyncio.sleep(0)
""",
    "thread": """
async def main():
    asyncio.ensure_future(asyncio.to_thread(threading.Event().wait))
    await asyncio.sleep(0)
""",
}


@pytest.mark.parametrize("what", HANGING)
def test_a_process_ends_although_something_hangs(what: str) -> None:
    program = (
        "import asyncio, os, sys, threading\n"
        "from server.closing import run_to_end, threads_hang\n"
        f"{HANGING[what]}\n"
        "run_to_end(main())\n"
        f"assert threads_hang() is {what == 'thread'}\n"
        "print('over', flush=True)\n"
        "os._exit(7)\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=DEADLINE
    )
    assert (ended.returncode, ended.stdout) == (7, "over\n"), ended.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_leaves_no_temporary_folder_and_is_what_the_process_ends_of(
    number: signal.Signals, tmp_path: Path
) -> None:
    program = (
        "import signal, sys, tempfile, time\n"
        "from server.closing import unwinding\n"
        f"signal.signal({number:d}, signal.SIG_DFL)\n"
        "with unwinding(), tempfile.TemporaryDirectory(dir=sys.argv[1]):\n"
        "    print('inside', flush=True)\n"
        f"    time.sleep({DEADLINE})\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    with process.stdout as said:
        assert said.readline() == "inside\n"
        process.send_signal(number)
        assert process.wait(DEADLINE) == -number
    assert list(tmp_path.iterdir()) == []


def test_what_ignores_a_signal_goes_on_ignoring_it() -> None:
    program = (
        "import os, signal\n"
        "from server.closing import unwinding\n"
        "signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as by nohup\n"
        "with unwinding():\n"
        "    os.kill(os.getpid(), signal.SIGHUP)\n"
        "assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN\n"
        "assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=DEADLINE)


def test_too_few_descriptors_for_mlx_lm_are_one_sentence() -> None:
    """mlx-lm sets the limits when it is imported; where it may not, that is a ValueError."""
    lower = (
        "import os, resource, runpy, sys\nresource.setrlimit(resource.RLIMIT_NOFILE, (512, 512))\n"
    )
    refuse = (
        "def refuse(*limits): raise ValueError('not allowed to raise maximum limit')\n"
        "resource.setrlimit = refuse  # as for everybody but root\n"
    )
    run = "sys.argv = ['server']\nrunpy.run_module('server', run_name='__main__')\n"
    ended = subprocess.run(
        [sys.executable, "-c", lower + refuse + run],
        capture_output=True,
        text=True,
        timeout=DEADLINE,
    )
    assert ended.returncode == 1, ended.stderr
    [line] = ended.stderr.splitlines()
    assert line.startswith("fatal: The hard limit of open files is 512, mlx-lm needs 4096")
