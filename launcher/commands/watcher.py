"""Follows a cluster over HTTP: the pictures of rank 0, and the launcher's status; goes on after failovers."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import httpx

from launcher.commands.top_view import Seen

PAUSE_S = 1.0
STATUS_S = 5.0  # for an answer
SILENCE_S = 8.0  # pictures come every second


class Watcher:
    """`seen` is the latest of everything; written by threads of `running`, or by `first`."""

    def __init__(self, client: httpx.Client) -> None:
        self._client = client
        self._ended = threading.Event()
        self._lock = threading.Lock()
        self.seen = Seen()

    def first(self, seconds: float) -> Seen:
        """One look at everything."""
        for look in (self._look, lambda: self._read(once=True, timeout=seconds)):
            self._tried(look)
        return self.seen

    @contextmanager
    def running(self) -> Iterator[None]:
        """Keep it up to date."""
        for look in (self._look, lambda: self._read(once=False, timeout=SILENCE_S)):
            threading.Thread(target=self._repeat, args=[look], daemon=True).start()
        try:
            yield
        finally:
            self._ended.set()

    def _repeat(self, look: Callable[[], None]) -> None:
        while not self._ended.is_set():
            self._tried(look)
            self._ended.wait(PAUSE_S)

    def _tried(self, look: Callable[[], None]) -> None:
        try:
            look()
        except httpx.HTTPStatusError as error:
            self._note(fault=_reason(error.response))
        except (httpx.HTTPError, ValueError) as error:
            self._note(fault=str(error) or type(error).__name__)

    def _look(self) -> None:
        answer = self._client.get("/admin/status", timeout=STATUS_S)
        if answer.status_code == 404:  # no launcher: rank 0 itself answers
            return
        self._note(status=answer.raise_for_status().json(), fault="")

    def _read(self, *, once: bool, timeout: float) -> None:
        try:
            with self._client.stream("GET", "/v1/cluster/events", timeout=timeout) as events:
                if events.is_error:
                    events.read()
                events.raise_for_status()
                for line in events.iter_lines():
                    if line.startswith("data: "):
                        picture = json.loads(line.removeprefix("data: "))
                        self._note(picture=picture, live=True, fault="")
                        if once:
                            return
                    if self._ended.is_set():
                        return
        finally:
            if not once:
                self._note(live=False)

    def _note(self, **changes: Any) -> None:
        with self._lock:
            self.seen = replace(self.seen, **changes)


def _reason(response: httpx.Response) -> str:
    try:
        message = response.json()["error"]["message"]
    except (ValueError, KeyError, TypeError):
        return f"status {response.status_code}"
    return str(message)
