"""How long work reports how far it is."""

from __future__ import annotations

from collections.abc import Callable
from threading import Lock
from typing import Any

from huggingface_hub.utils import tqdm

# (what is being done, units done, units in all), from any thread.  Units are bytes, or files.
Progress = Callable[[str, int, int], None]


def silent(what: str, done: int, total: int) -> None:
    """The progress callback of callers that do not ask for one."""


class Meter:
    """Adds up the progress of parallel work."""

    def __init__(self, what: str, total: int, report: Progress) -> None:
        self._what, self._done, self._total, self._report = what, 0, total, report
        self._lock = Lock()

    def add(self, units: int) -> None:
        with self._lock:
            self._done = min(self._done + units, self._total)
            self._report(self._what, self._done, self._total)

    def bar(self) -> type[Any]:
        """A progress bar class for huggingface_hub: prints nothing, adds to this meter."""
        add = self.add

        class Bar(tqdm):  # type: ignore[misc]  # a class that mypy does not see
            def __init__(self, *args: Any, **options: Any) -> None:
                super().__init__(*args, **{**options, "disable": True})
                add(int(options.get("initial") or 0))

            def update(self, n: float | None = 1) -> None:
                add(int(n or 0))

        return Bar
