"""Small files for their owner alone: written whole or not at all, and refused if others can read them."""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
from dataclasses import dataclass
from pathlib import Path

from server.access.errors import AccessError

MAX_BYTES = 16 << 20
_OTHERS = stat.S_IRWXG | stat.S_IRWXO


@dataclass(frozen=True)
class Version:
    """Changes whenever a file is replaced or written."""

    inode: int
    size: int
    modified_ns: int


def version_of(path: Path) -> Version | None:
    """None if there is no such file."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise AccessError(f"{path}: can't be read: {error.strerror}.") from error
    return Version(status.st_ino, status.st_size, status.st_mtime_ns)


def read_private(path: Path) -> bytes:
    """The content.  Raises AccessError if it can't be read, is absurdly large, or others may read it."""
    try:
        with open(path, "rb", opener=_without_waiting) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise AccessError(f"{path}: is not a file, but something else of this name.")
            if status.st_mode & _OTHERS:
                raise AccessError(
                    f"{path}: others than its owner may read or write it; run chmod 600 {path}."
                )
            if status.st_size > MAX_BYTES:
                raise AccessError(f"{path}: {status.st_size} bytes are too many.")
            return file.read()
    except OSError as error:
        raise AccessError(f"{path}: can't be read: {error.strerror}.") from error


def _without_waiting(path: str, flags: int) -> int:
    """As a named pipe would have it done, until somebody writes."""
    return os.open(path, flags | os.O_NONBLOCK)


def write_private(path: Path, content: bytes) -> None:
    """Replace the file in one step.  Raises AccessError."""
    try:
        make_private_folder(path.parent)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # mode 0600
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)
            raise
    except OSError as error:
        raise AccessError(f"{path}: can't be written: {error.strerror}.") from error


def make_private_folder(folder: Path) -> None:
    """Make it with mode 0700; one that is there already stays as it is."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
