"""A model folder is data from somewhere: what its names may point to.

Links may lead to files of the folder itself.  A snapshot in the hub's cache, of models--OWNER--NAME/snapshots,
is made of links to the blobs of that repository, and those are followed too.  Nothing else is.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from pipeline.errors import CheckpointError

# Weights in other forms; most of them are pickles, which run code when they are read.
FOREIGN = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".npz", ".h5", ".msgpack", ".gguf", ".onnx")


def check_contained(folder: Path) -> None:
    """Raises CheckpointError for a name in the folder that leads out of it, or to what is no file."""
    root = folder.resolve()
    allowed = [root]
    if root.parent.name == "snapshots":
        allowed.append(root.parent.parent / "blobs")
    for path in _entries(folder):
        target = path.resolve()
        if path.is_symlink() and not any(target.is_relative_to(place) for place in allowed):
            raise CheckpointError(
                f"{path} is a link to {target}, outside of the model's folder; put the file itself there."
            )
        if target.exists() and not _is_plain(target):
            raise CheckpointError(f"{path} is neither a file nor a folder.")


def inside(folder: Path, name: str) -> Path:
    """The file called `name` in the folder.  Raises CheckpointError if that would be a path out of it."""
    path = folder / name
    if not path.resolve().is_relative_to(folder.resolve()):
        raise CheckpointError(f"{folder} names {name}, a path that leads out of it.")
    return path


def unreadable(path: Path, error: OSError) -> CheckpointError:
    """Of what the system does not let this user read; `path`: where `error` does not say which file."""
    return CheckpointError(f"{error.filename or path} can't be read: {error.strerror or error}.")


def foreign_weights(folder: Path) -> str | None:
    """The name of a file with weights in a form that is never read."""
    names = sorted(path.name for path in folder.iterdir() if path.suffix in FOREIGN)
    return names[0] if names else None


def _entries(folder: Path) -> Iterator[Path]:
    for parent, folders, files in os.walk(folder):  # does not enter folders that are links
        for name in (*folders, *files):
            yield Path(parent, name)


def _is_plain(path: Path) -> bool:
    mode = path.stat().st_mode
    return stat.S_ISREG(mode) or stat.S_ISDIR(mode)
