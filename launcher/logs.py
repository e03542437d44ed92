"""The log lines of all ranks as one stream: in order, coloured, and kept in files that are rotated.

Ranks write JSON lines; what is none, such as the words of mlx.launch, passes through as it is.
"""

from __future__ import annotations

import contextlib
import errno
import heapq
import io
import json
import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Any, Literal, TextIO

Form = Literal["text", "json"]

HOLD_S = 0.3  # a line waits so long for older ones of other ranks, which come over ssh
FILE_BYTES = 10 << 20
FILES = 5  # older ones, besides the one that is written
MOST_HELD = 100_000  # lines, while nobody reads what is shown; later ones are left out
CLOSE_S = 5.0  # for what is held back to be shown at the end
_LAST_TIME = 1e11  # Unix time of no log line; what is later is no date either

_RANK_COLOURS = (36, 32, 35, 34, 33, 96, 92, 95, 94)  # of a terminal, from rank 0 on
_LEVEL_COLOURS = {"debug": 90, "warning": 33, "error": 31, "critical": 31}
_SHOWN = frozenset(("time", "level", "event", "rank", "node", "epoch", "exception", "logger"))


@dataclass(frozen=True, order=True)
class Entry:
    """A line with what it is ordered by."""

    time: float  # Unix time: the rank's for its own lines, else when it came
    number: int  # lines of one moment stay in the order in which they came
    text: str
    is_error: bool
    event: Mapping[str, Any] | None  # None: no line of the log of a rank


class Merger:
    """Holds lines back for a moment and gives them in the order of their times."""

    def __init__(self, hold_s: float = HOLD_S) -> None:
        self._hold_s = hold_s
        self._held: list[Entry] = []
        self._came: dict[int, float] = {}
        self._number = 0

    def __len__(self) -> int:
        return len(self._held)

    def add(self, text: str, is_error: bool, now: float) -> None:
        """A line has come at `now`, in Unix time."""
        event = parse(text)
        at = now if event is None else float(event["time"])
        heapq.heappush(self._held, Entry(at, self._number, text, is_error, event))
        self._came[self._number] = now
        self._number += 1

    def ready(self, now: float) -> Iterator[Entry]:
        """Lines that have waited long enough, and all that belong before them."""
        late = [number for number, came in self._came.items() if came <= now - self._hold_s]
        if not late:
            return
        waiting = set(late)
        while waiting:
            entry = heapq.heappop(self._held)
            waiting.discard(entry.number)
            del self._came[entry.number]
            yield entry

    def rest(self) -> Iterator[Entry]:
        """All that is left."""
        while self._held:
            entry = heapq.heappop(self._held)
            del self._came[entry.number]
            yield entry


def parse(line: str) -> Mapping[str, Any] | None:
    """The event of a rank's log line; None for anything else."""
    if not line.startswith("{"):
        return None
    try:
        event = json.loads(line)
    except (ValueError, RecursionError):
        return None
    wanted = isinstance(event, dict) and isinstance(event.get("event"), str)
    if not wanted or not isinstance(event.get("time"), (int, float)):
        return None
    if not 0 <= event["time"] < _LAST_TIME:
        return None
    found: Mapping[str, Any] = event
    return found


def readable(event: Mapping[str, Any], colours: bool) -> str:
    """A log line for people: when, who, what."""
    at = datetime.fromtimestamp(event["time"]).strftime("%H:%M:%S.%f")[:-3]
    level = str(event.get("level", "info"))
    rank, node = event.get("rank"), event.get("node", "")
    who = "launcher" if rank is None else f"{rank} {node}"
    fields = " ".join(f"{k}={_value(v)}" for k, v in event.items() if k not in _SHOWN)
    tint = _RANK_COLOURS[rank % len(_RANK_COLOURS)] if isinstance(rank, int) else 37
    parts = [
        _paint(at, 90, colours),
        _paint(f"{who:<10}", tint, colours),
        _paint(f"{level:<7}", _LEVEL_COLOURS.get(level, 0), colours),
        _printable(event["event"]),
        _paint(fields, 90, colours),
    ]
    text = " ".join(part for part in parts if part)
    trace = event.get("exception")
    return "\n".join([text, *map(_printable, str(trace).split("\n"))]) if trace else text


def _value(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return json.dumps(text) if " " in text or not text else _printable(text)


def _printable(text: str) -> str:
    """What a client has sent may stand in a log: nothing of it is for the terminal to obey."""
    return text if text.isprintable() else json.dumps(text)[1:-1]


def _paint(text: str, colour: int, colours: bool) -> str:
    return f"\x1b[{colour}m{text}\x1b[0m" if colours and colour and text else text


class LogStream:
    """Takes the lines of a job, from any thread; shows them, and keeps them in files.  `close` ends it."""

    def __init__(
        self,
        form: Form | None = None,
        folder: Path | None = None,
        name: str = "cluster",
        out: TextIO | None = None,
        error: TextIO | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`form`: None is text.  `folder`: for name.log and its older parts; None: no files.

        Raises OSError when no file can be written there.
        """
        self._out, self._error = out or sys.stdout, error or sys.stderr
        self._form, self._clock = form or "text", clock
        self._colours = self._error.isatty()
        self._file = None if folder is None else _file(folder, name)
        self._merger = Merger()
        self._changed = threading.Condition()
        self._closed = self._unread = False
        self._dropped = 0
        self._unkept = 0  # lines that no file has, since the last one that could be written
        self._thread = threading.Thread(target=self._run, name="logs", daemon=True)
        self._thread.start()

    def __call__(self, line: str, is_error: bool) -> None:
        """A line of a rank or of mlx.launch, without its end; see launcher.job.Relay."""
        with self._changed:
            if len(self._merger) >= MOST_HELD:
                self._dropped += 1
                return
            self._merger.add(line, is_error, self._clock())
            self._changed.notify()

    def say(self, event: str, level: str = "info", **fields: object) -> None:
        """A line of the launcher itself."""
        line = {"time": self._clock(), "level": level, "event": event, **fields}
        self(json.dumps(line, default=str), True)

    def close(self) -> None:
        """Show what is held back, and end; without it if nobody reads."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join(CLOSE_S)
        if self._file is not None and not self._thread.is_alive():
            with contextlib.suppress(OSError):  # of a disk that is full
                self._file.close()

    def _run(self) -> None:
        while True:
            with self._changed:
                while not (self._closed or len(self._merger)):
                    self._changed.wait()
                if not self._closed:
                    self._changed.wait(HOLD_S / 3)
                closed = self._closed
                entries = list(self._merger.rest() if closed else self._merger.ready(self._clock()))
                dropped, self._dropped = self._dropped, 0
            for entry in entries:
                self._show(entry)
            if dropped:
                self.say(
                    "lines are lost: nobody has read the ones before", "warning", lines=dropped
                )
            elif closed:
                return

    def _show(self, entry: Entry) -> None:
        text = entry.text
        if entry.event is not None and self._form == "text":
            text = readable(entry.event, self._colours)
        if not self._unread:
            try:
                print(text, file=self._error if entry.is_error else self._out, flush=True)
            except OSError as error:
                # The terminal is closed, or the other end of the pipe; files go on.  A full disk may get room.
                self._unread = error.errno != errno.ENOSPC
        if self._file is not None:
            self._keep(self._file, entry)

    def _keep(self, file: _File, entry: Entry) -> None:
        """Files have JSON lines only."""
        text = entry.text
        if entry.event is None:
            text = json.dumps({"time": entry.time, "level": "info", "event": text})
        try:
            file.emit(logging.makeLogRecord({"msg": text}))
        except OSError as error:
            if not self._unkept:
                self.say("log files can't be written", "warning", error=error.strerror)
            self._unkept += 1
        else:
            if self._unkept:
                lines, self._unkept = self._unkept, 0
                self.say("log files are written again", lost=lines)


class _File(RotatingFileHandler):
    """Raises OSError where a line can't be written, and tries to open the file anew with the next one."""

    def handleError(self, record: logging.LogRecord) -> None:
        if not isinstance(sys.exc_info()[1], OSError):
            super().handleError(record)
            return
        stream, self.stream = self.stream, None  # opened again by the next line
        if stream is not None:
            with contextlib.suppress(OSError):
                stream.close()
        raise  # noqa: PLE0704 - called while it is handled


class Lines(io.TextIOBase):
    """A text stream whose lines go into a LogStream: for the launcher's own logging."""

    def __init__(self, stream: LogStream) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Whole lines, as handlers of the standard library write them."""
        for line in text.splitlines():
            self._stream(line, True)
        return len(text)


def _file(folder: Path, name: str) -> _File:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return _File(folder / f"{name}.log", maxBytes=FILE_BYTES, backupCount=FILES, encoding="utf-8")
