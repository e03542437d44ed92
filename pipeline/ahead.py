"""What a process that waits to be a rank has read before it is needed; `server.standby` has it read.

It is used only where reading it now would give the same: for the same model, from files that are as they were.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

T = TypeVar("T")
State = tuple[tuple[str, int, int], ...]


@dataclass(frozen=True)
class _Kept(Generic[T]):
    key: Hashable
    value: T
    folder: Path
    state: State


class Ahead(Generic[T]):
    """One value, which is handed out once."""

    def __init__(self) -> None:
        self._kept: _Kept[T] | None = None

    def keep(self, key: Hashable, folder: Path, state: State, value: T) -> None:
        """`state`: of the folder with the files from which it was made, before that."""
        self._kept = _Kept(key, value, folder, state)

    def take(self, key: Hashable) -> T | None:
        """None if it has not been kept, or is no longer what would be made."""
        kept, self._kept = self._kept, None
        if kept is None or kept.key != key or state_of(kept.folder) != kept.state:
            return None
        return kept.value


def state_of(folder: Path) -> State:
    """Differs once a file in it has been written; empty if it can't be read."""
    try:
        files = [(path.name, path.stat()) for path in folder.iterdir()]
    except OSError:
        return ()
    return tuple(sorted((name, found.st_size, found.st_mtime_ns) for name, found in files))
