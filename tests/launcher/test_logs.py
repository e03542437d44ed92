"""Lines of several ranks as one stream."""

from __future__ import annotations

import io
import json
import threading
from pathlib import Path
from typing import Any

import pytest

from config import ConfigError, load
from launcher import logs
from launcher.logs import LogStream, Merger, parse, readable
from launcher.serve import log_stream


def line(at: float, rank: int = 0, event: str = "ready", **fields: Any) -> str:
    return json.dumps(
        {"time": at, "level": "info", "event": event, "rank": rank, "node": f"mini{rank}", **fields}
    )


def order(merger: Merger, now: float) -> list[float]:
    return [entry.time for entry in merger.ready(now)]


def test_lines_come_in_the_order_of_their_times() -> None:
    merger = Merger(hold_s=1.0)
    merger.add(line(10.4, 1), True, now=11.0)
    merger.add(line(10.1, 0), True, now=11.5)
    merger.add(line(10.9, 2), True, now=11.6)
    assert order(merger, 11.9) == []
    assert order(merger, 12.0) == [10.1, 10.4]  # 10.1 goes along: it belongs before
    assert [entry.time for entry in merger.rest()] == [10.9]
    assert len(merger) == 0


def test_lines_of_one_moment_stay_as_they_came_and_a_wrong_clock_holds_up_nobody() -> None:
    merger = Merger(hold_s=1.0)
    for text in ("b", "a"):
        merger.add(text, False, now=5.0)
    merger.add(line(9e9), True, now=5.0)
    assert [entry.text for entry in merger.ready(6.0)] == ["b", "a", line(9e9)]


@pytest.mark.parametrize(
    "text",
    [
        *("", "fatal: no", "{", "[1]", '{"event": "x"}', '{"time": 1}', "{" * 10_000),
        *(f'{{"event": "x", "time": {time}}}' for time in ("1e300", "NaN", "Infinity", "-1")),
    ],
)
def test_what_is_no_log_line(text: str) -> None:
    assert parse(text) is None


def test_readable_lines() -> None:
    event = json.loads(line(0.5, 1, "settings changed", request_id="req 1", epoch=7))
    assert readable(event, colours=False)[12:] == (
        ' 1 mini1    info    settings changed request_id="req 1"'
    )
    painted = readable({**event, "level": "error"}, colours=True)
    assert "\x1b[32m1 mini1" in painted
    assert "\x1b[31merror" in painted
    assert readable({**event, "exception": "Traceback"}, False).endswith("\nTraceback")


def test_a_stream_shows_merges_and_keeps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "FILE_BYTES", 2000)
    out, error = io.StringIO(), io.StringIO()
    stream = LogStream(None, tmp_path / "new", "test", out, error)
    stream("served on http://127.0.0.1:8000", False)
    writers = [
        threading.Thread(
            target=lambda rank=rank: [stream(line(1000.0 + n, rank), True) for n in range(20)]
        )
        for rank in range(3)
    ]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    stream.say("a rank has died", "error", rank_lost=2)
    stream.close()
    assert out.getvalue() == "served on http://127.0.0.1:8000\n"
    shown = error.getvalue().splitlines()
    assert len(shown) == 61
    assert next(text for text in shown if "launcher" in text).endswith(
        "a rank has died rank_lost=2"
    )
    files = sorted((tmp_path / "new").iterdir())
    assert len(files) > 1  # rotated
    kept = [json.loads(text) for file in files for text in file.read_text().splitlines()]
    assert len(kept) == 62
    assert {entry["event"] for entry in kept} >= {"served on http://127.0.0.1:8000"}


def test_json_is_passed_on_as_it_is() -> None:
    error = io.StringIO()
    stream = LogStream("json", out=io.StringIO(), error=error)
    stream(line(1.0), True)
    stream.close()
    assert error.getvalue() == line(1.0) + "\n"


def test_nothing_in_a_line_is_for_the_terminal_to_obey() -> None:
    event = json.loads(line(1.0, event="a\x1b[2Jb", asked="x\x1b]0;title\x07", by="c\nd"))
    text = readable({**event, "exception": "one\n\x1b[2Jtwo"}, colours=False)
    assert "\x1b" not in text
    assert "\x07" not in text
    assert len(text.split("\n")) == 3  # of which two are the traceback


class _Unread(io.StringIO):
    """The end of a pipe whose other end is closed."""

    def write(self, text: str) -> int:
        raise BrokenPipeError


def test_files_go_on_when_nobody_reads_what_is_shown(tmp_path: Path) -> None:
    stream = LogStream(None, tmp_path, "test", _Unread(), _Unread())
    stream(line(1.0, event="first"), True)
    while not (tmp_path / "test.log").read_text():
        threading.Event().wait(0.01)
    stream(line(2.0, event="second"), True)
    stream.close()
    assert [json.loads(t)["event"] for t in (tmp_path / "test.log").read_text().splitlines()] == [
        "first",
        "second",
    ]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no disk that is full can be had")
def test_a_full_disk_is_told_once_and_files_go_on_when_it_has_room(tmp_path: Path) -> None:
    file, shown = tmp_path / "test.log", io.StringIO()
    file.symlink_to("/dev/full")
    stream = LogStream("json", tmp_path, "test", shown, shown)

    def shows(event: str) -> None:
        while event not in shown.getvalue():
            threading.Event().wait(0.01)

    for event in ("first", "second"):
        stream(line(1.0, event=event), True)
        shows(event)
    shows("can't be written")
    file.unlink()
    stream(line(1.0, event="third"), True)
    shows("written again")
    stream.close()
    events = [json.loads(text)["event"] for text in shown.getvalue().splitlines()]
    for told in ("log files can't be written", "log files are written again"):
        assert events.count(told) == 1
    kept = [json.loads(text)["event"] for text in file.read_text().splitlines()]
    assert "third" in kept
    assert "first" not in kept


def test_a_disk_that_is_full_at_the_end_holds_up_nobody(tmp_path: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no disk that is full can be had")
    (tmp_path / "test.log").symlink_to("/dev/full")
    stream = LogStream("json", tmp_path, "test", io.StringIO(), io.StringIO())
    stream(line(1.0), True)
    stream.close()
    assert not stream._thread.is_alive()


class _Stuck(io.StringIO):
    """A terminal that is held."""

    def __init__(self) -> None:
        super().__init__()
        self.full, self.go_on = threading.Event(), threading.Event()

    def write(self, text: str) -> int:
        self.full.set()
        self.go_on.wait()
        return super().write(text)


def test_lines_that_nobody_reads_are_bounded_and_hold_up_no_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(logs, "MOST_HELD", 3)
    monkeypatch.setattr(logs, "CLOSE_S", 0.01)
    stuck = _Stuck()
    stream = LogStream(None, out=io.StringIO(), error=stuck)
    stream(line(1.0, event="shown"), True)
    assert stuck.full.wait(60)
    for number in range(10):
        stream(line(2.0, event=f"line {number}"), True)
    stream.close()
    monkeypatch.setattr(logs, "CLOSE_S", 60.0)
    stuck.go_on.set()
    stream.close()
    text = stuck.getvalue()
    assert "line 2" in text
    assert "line 3" not in text
    assert "lines=7" in text


def test_a_log_that_can_not_be_opened_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "cluster.log").mkdir()
    config = load(None, {}, [f"launcher.log_folder={tmp_path}"]).config
    with pytest.raises(ConfigError, match=r"launcher\.log_folder = .*no log can be written"):
        log_stream(config)
