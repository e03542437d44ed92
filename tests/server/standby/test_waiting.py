"""How one who waits reads its standard input, without what a rank imports."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from server.standby.__main__ import LONGEST, take_any_line, take_place, wait
from server.standby.assignment import VERSION, Assignment, AssignmentError

MADE = Assignment(
    version=VERSION,
    epoch=1,
    places=(1, 0),
    ring=(("127.0.0.1:2",), ("127.0.0.1:1",)),
    arguments=("--set", "cluster.name=x" * 1000),
)


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    reading, writing = os.pipe()
    yield reading, writing
    os.close(reading)
    with contextlib.suppress(OSError):  # closed by the test
        os.close(writing)


def test_the_assignment_comes_in_pieces_after_empty_lines(pipe: tuple[int, int]) -> None:
    reading, writing = pipe
    line = MADE.line()
    pieces = [b"\n", b"\r\n", line[:7], line[7:900], line[900:]]
    writer = threading.Thread(target=lambda: [os.write(writing, piece) for piece in pieces])
    writer.start()
    assert wait(reading) == MADE
    writer.join()


def test_the_end_of_input_is_the_end(pipe: tuple[int, int]) -> None:
    reading, writing = pipe
    os.write(writing, b"\n")
    os.close(writing)
    assert wait(reading) is None


def test_who_hears_nothing_at_all_does_not_wait_for_ever(pipe: tuple[int, int]) -> None:
    assert wait(pipe[0], lease=0.05) is None


def test_a_terminal_that_hangs_up_is_the_end() -> None:
    leader, follower = os.openpty()
    os.close(leader)
    assert wait(follower) is None
    os.close(follower)


def test_a_terminal_takes_lines_of_any_length() -> None:
    """As ssh gives it: unless told otherwise it cuts lines at 4096 bytes, on macOS at 1024."""
    leader, follower = os.openpty()
    take_any_line(follower)
    writer = threading.Thread(target=_write_all, args=(leader, MADE.line()))
    writer.start()
    assert wait(follower) == MADE
    writer.join()
    os.close(leader)
    os.close(follower)


def test_what_is_no_assignment_is_refused(pipe: tuple[int, int]) -> None:
    reading, writing = pipe
    os.write(writing, b"serve\n")
    with pytest.raises(AssignmentError):
        wait(reading)


def test_a_line_without_end_is_refused(pipe: tuple[int, int]) -> None:
    reading, writing = pipe
    endless = threading.Thread(target=_write_all, args=(writing, b"x" * (LONGEST + 1)), daemon=True)
    endless.start()
    with pytest.raises(AssignmentError, match="more than"):
        wait(reading)


def _write_all(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]


def test_its_place_is_what_mlx_launch_would_have_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hostfile = tmp_path / "ring"
    hostfile.write_text('[["127.0.0.1:1"], ["127.0.0.1:2"]]')
    monkeypatch.setenv("MLX_HOSTFILE", str(hostfile))
    monkeypatch.setenv("MLX_RANK", "1")
    take_place(MADE, 0)
    assert hostfile.read_text() == '[["127.0.0.1:2"],["127.0.0.1:1"]]'
    assert os.environ["MLX_RANK"] == "0"
