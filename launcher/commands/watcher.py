"""Follows a cluster over HTTP, by the stream that has all of it; goes on after failovers."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import httpx

from launcher.commands.top_view import Seen

PATH = "/v1/cluster/events"
PAUSE_S = 1.0
SILENCE_S = 8.0  # something comes every second
JOIN_S = 2.0  # for the thread to end; it may be in the middle of a connection attempt


class Watcher:
    """`seen` is the latest of everything; written by the thread of `running`, or by `first`."""

    def __init__(self, client: httpx.Client, changed: Callable[[], None] = lambda: None) -> None:
        """`changed` is called after each change, by whoever has made it."""
        self._client, self._changed = client, changed
        self._ended = threading.Event()
        self.seen = Seen()

    def first(self, seconds: float) -> Seen:
        """One look at everything."""
        self._try(once=True, silence=seconds)
        return self.seen

    @contextmanager
    def running(self) -> Iterator[None]:
        """Keep it up to date."""
        thread = threading.Thread(target=self._run, daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._ended.set()
            thread.join(JOIN_S)

    def _run(self) -> None:
        while not self._ended.is_set():
            self._try(once=False, silence=SILENCE_S)
            self._ended.wait(PAUSE_S)

    def _try(self, *, once: bool, silence: float) -> None:
        fault = "the stream has ended"
        try:
            with self._client.stream("GET", PATH, timeout=silence) as events:
                if events.is_error:
                    events.read()
                    fault = _reason(events)
                elif self._follow(events.iter_lines(), once):
                    return
        except (httpx.HTTPError, ValueError) as error:
            fault = str(error) or type(error).__name__
        self._note(live=False, reachable=False, fault=fault)

    def _follow(self, lines: Iterable[str], once: bool) -> bool:
        """Whether it was seen through, and not ended by the other side."""
        for kind, data in _events(lines):
            if kind == "launcher":
                self._note(status=data, reachable=True)
            elif kind == "gap":
                self._note(live=False, fault=data["reason"])
            elif "error" in data:  # rank 0 broke off
                self._note(live=False, fault=data["error"]["message"])
            else:
                self._note(picture=data, live=True, reachable=True, fault="")
            if self._ended.is_set() or (once and kind != "launcher"):
                return True
        return False

    def _note(self, **changes: Any) -> None:
        self.seen = replace(self.seen, **changes)
        self._changed()


def _events(lines: Iterable[str]) -> Iterator[tuple[str, Any]]:
    """Server-sent events: kind, empty where none is named, and data."""
    kind = ""
    for line in lines:
        if line.startswith("event: "):
            kind = line.removeprefix("event: ")
        elif line.startswith("data: "):
            yield kind, json.loads(line.removeprefix("data: "))
        elif not line:
            kind = ""


def _reason(response: httpx.Response) -> str:
    try:
        message = response.json()["error"]["message"]
    except (ValueError, KeyError, TypeError):
        return f"status {response.status_code}"
    return str(message)
