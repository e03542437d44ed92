"""`top` in a terminal of its own: a pseudo terminal, whose other end the test holds."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from launcher.commands.watcher import PATH
from tests.launcher.commands.test_top import PICTURE, STATUS

DEADLINE_S = 120.0
ENTERED, LEFT = "\x1b[?1049h", "\x1b[?1049l"  # the other screen
HOME = "\x1b[H"  # where each frame begins
CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
COLOUR = re.compile(r"\x1b\[[0-9;]*3[0-7][0-9;]*m")


class FrontDoor(ThreadingHTTPServer):
    """Its streams last as long as it is `there`; then it closes every connection without a word."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Stream)
        self.there = True

    def handle_error(self, *_: object) -> None: ...


class Stream(BaseHTTPRequestHandler):
    server: FrontDoor

    def do_GET(self) -> None:
        assert self.path == PATH
        if not self.server.there:
            return
        self.send_response(200)
        self.end_headers()
        events = f"event: launcher\ndata: {json.dumps(STATUS)}\n\ndata: {json.dumps(PICTURE)}\n\n"
        while self.server.there:
            self.wfile.write(events.encode())
            time.sleep(0.1)

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def door() -> Iterator[FrontDoor]:
    server = FrontDoor()
    threading.Thread(target=server.serve_forever).start()
    yield server
    server.there = False
    server.shutdown()
    server.server_close()


class Window:
    """A window with `top` in it."""

    def __init__(self, door: FrontDoor, **environment: str) -> None:
        self.ours, self.theirs = pty.openpty()
        self.resize(160)
        self.before = termios.tcgetattr(self.theirs)
        self.shown = ""
        url = f"http://127.0.0.1:{door.server_port}"
        command = [sys.executable, "-m", "launcher", "top", "--url", url]
        plain = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LINES", "NO_COLOR")}
        self.process = subprocess.Popen(
            command,
            stdin=self.theirs,
            stdout=self.theirs,
            stderr=self.theirs,
            start_new_session=True,
            env=plain | {"TERM": "xterm-256color"} | environment,
        )

    def resize(self, columns: int) -> None:
        fcntl.ioctl(self.theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))

    def until(self, *words: str) -> str:
        """What is shown until all of `words` are in it."""
        end = time.monotonic() + DEADLINE_S
        while not all(word in self.shown for word in words):
            ready, _, _ = select.select([self.ours], [], [], max(0.0, end - time.monotonic()))
            assert ready, f"{words} not in {self.shown[-4000:]!r}"
            self.shown += os.read(self.ours, 65536).decode(errors="replace")
        length = max(self.shown.index(word) + len(word) for word in words)
        seen, self.shown = self.shown[:length], self.shown[length:]
        return seen

    def frame(self) -> str:
        """The next one that is drawn whole, without control characters."""
        self.until(HOME)
        return CONTROL.sub("", self.until(HOME))

    def press(self, key: str) -> None:
        os.write(self.ours, key.encode())

    def ended(self) -> int:
        """Its exit status; what it had changed of the terminal must be as before."""
        end = time.monotonic() + DEADLINE_S
        while (status := self.process.poll()) is None:
            assert time.monotonic() < end
            if select.select([self.ours], [], [], 0.05)[0]:  # it may wait until all is read
                os.read(self.ours, 65536)
        assert termios.tcgetattr(self.theirs) == self.before
        return status

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        for end in (self.ours, self.theirs):
            os.close(end)


@contextmanager
def window(door: FrontDoor, **environment: str) -> Iterator[Window]:
    made = Window(door, **environment)
    try:
        yield made
    finally:
        made.close()


def test_it_is_shown_fits_a_new_size_and_ends_with_q(door: FrontDoor) -> None:
    with window(door) as top:
        assert ENTERED in top.until("mini1 leads", "51 °C", "1.5 s")
        top.resize(50)
        top.process.send_signal(signal.SIGWINCH)  # no terminal is in control of its session
        while "51 °C" in (frame := top.frame()):
            pass
        assert "mini2" in frame
        assert max(len(line.rstrip()) for line in frame.splitlines()) <= 50
        top.press("q")
        top.until(LEFT)
        assert top.ended() == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_terminal_is_left_as_it_was_whatever_ends_it(
    door: FrontDoor, number: signal.Signals
) -> None:
    with window(door) as top:
        top.until("mini1 leads")
        top.process.send_signal(number)
        top.until(LEFT)
        assert top.ended() == 0


def test_a_launcher_that_goes_is_missed_and_found_again(door: FrontDoor) -> None:
    with window(door) as top:
        top.until("mini1 leads")
        door.there = False
        top.until("trying again")
        door.there = True
        top.until("mini1 leads")


def test_it_does_without_colour(door: FrontDoor) -> None:
    with window(door, NO_COLOR="1") as top:
        assert not COLOUR.search(top.until("mini1 leads", "alert: "))
    with window(door) as top:
        assert COLOUR.search(top.until("mini1 leads", "alert: "))


def test_on_a_terminal_that_can_do_nothing_it_is_printed_once(door: FrontDoor) -> None:
    with window(door, TERM="dumb") as top:
        assert "\x1b" not in top.until("mini1 leads", "failovers: 1", "\r\n")
        assert top.ended() == 0
