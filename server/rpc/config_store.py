"""Configuration as the coordinator shows and changes it; what a key means is not known here."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class ConfigEntry:
    """One value and where it came from."""

    key: str
    value: str  # YAML, as --set takes it
    origin: str
    dynamic: bool  # may change at run time


@dataclass(frozen=True)
class ConfigChange:
    """What became of a request to change values: all applied, or none."""

    revision: int
    refused: Mapping[str, str]  # key to reason


class ConfigBackend(Protocol):
    """Where the values live."""

    def entries(self) -> Sequence[ConfigEntry]:
        """Every value, by key."""
        ...

    def change(self, changes: Mapping[str, str]) -> Mapping[str, str]:
        """Apply all changes, or none and return the refused keys with a reason each."""
        ...


class ConfigStore:
    """Counts the changes and remembers them for ranks that have not heard of them."""

    def __init__(self, backend: ConfigBackend, on_change: Callable[[], None]) -> None:
        self._backend = backend
        self._on_change = on_change
        self._changed: dict[str, str] = {}
        self.revision = 0  # rises by one with every change; 0: as started

    def entries(self, prefix: str = "") -> list[ConfigEntry]:
        """Values whose key is `prefix` or lies below it."""
        return [
            entry
            for entry in self._backend.entries()
            if not prefix or entry.key == prefix or entry.key.startswith(f"{prefix}.")
        ]

    def change(self, changes: Mapping[str, str]) -> ConfigChange:
        """Change values and tell the watchers."""
        refused = self._backend.change(changes)
        if not refused:
            self._changed.update(changes)
            self.revision += 1
            self._on_change()
        return ConfigChange(self.revision, refused)

    def changes_after(self, revision: int) -> Mapping[str, str]:
        """What a rank at `revision` has to apply; all run-time changes if it is behind."""
        return {} if revision == self.revision else dict(self._changed)
