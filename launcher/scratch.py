"""Temporary folders of the launcher: they go when it ends, or when the next one starts if it was killed."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from pathlib import Path

import psutil

PREFIX = "mlx-cluster-launcher-"
_NAME = re.compile(rf"{PREFIX}(\d+)-\w+")


class Scratch(tempfile.TemporaryDirectory[str]):
    """Named by this process, so that another one can tell whether anybody needs it."""

    def __init__(self) -> None:
        # A rank that is another user's by now, or can't be killed, may still write there.
        super().__init__(prefix=f"{PREFIX}{os.getpid()}-", ignore_cleanup_errors=True)


def remove_left() -> None:
    """Remove those of launchers of this user that had no chance to do it."""
    with os.scandir(tempfile.gettempdir()) as entries:
        left = [Path(entry.path) for entry in entries if _is_left(entry)]
    for folder in left:
        shutil.rmtree(folder, ignore_errors=True)


def _is_left(entry: os.DirEntry[str]) -> bool:
    match = _NAME.fullmatch(entry.name)
    if match is None or not entry.is_dir(follow_symlinks=False):
        return False
    try:
        owner = entry.stat(follow_symlinks=False).st_uid
    except FileNotFoundError:  # another launcher was faster
        return False
    return owner == os.getuid() and not psutil.pid_exists(int(match[1]))
