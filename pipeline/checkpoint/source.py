"""Where the files of a model come from: what every kind of source offers, and the folder."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from pipeline.checkpoint.containment import check_contained, foreign_weights, unreadable
from pipeline.checkpoint.header import Header, read_header
from pipeline.checkpoint.progress import Progress
from pipeline.errors import CheckpointError, ModelNotFound

WEIGHTS = "model*.safetensors"  # what mlx-lm loads; a repository may hold other weights too
INDEX = "model.safetensors.index.json"


class Source(Protocol):
    """Small files of a model in a folder, headers of its weight files, and those files on demand."""

    @property
    def name(self) -> str:
        """As the user wrote it; for messages."""
        ...

    @property
    def path(self) -> Path:
        """Folder with config.json, the tokenizer and the other small files."""
        ...

    @property
    def headers(self) -> Mapping[str, Header]:
        """Weight file name -> header, for all files of the model."""
        ...

    def fetch(self, files: Collection[str], progress: Progress) -> dict[str, Path]:
        """Make `files` available on this machine; name -> path."""
        ...


@dataclass(frozen=True)
class Folder:
    """A model folder on this machine."""

    name: str
    path: Path
    headers: Mapping[str, Header]

    @classmethod
    def open(cls, name: str) -> Folder:
        """Raises ModelNotFound without such a folder, CheckpointError when its weights are not whole."""
        path = Path(name).expanduser()
        try:
            return cls._opened(name, path)
        except OSError as error:
            raise unreadable(path, error) from error

    @classmethod
    def _opened(cls, name: str, path: Path) -> Folder:
        if not path.is_dir():
            raise ModelNotFound(f"There is no model folder {name}; check the path.")
        check_contained(path)
        require_config(path, name)
        files = sorted(file.name for file in path.glob(WEIGHTS))
        check_listing(path, name, files)
        return cls(name, path, {file: read_header(path / file) for file in files})

    def fetch(self, files: Collection[str], progress: Progress) -> dict[str, Path]:
        return {file: self.path / file for file in files}


def require_config(path: Path, name: str) -> None:
    """Raises CheckpointError when the folder holds no config.json."""
    if not (path / "config.json").is_file():
        raise CheckpointError(f"{name} has no config.json, so it is not a model of mlx-lm.")


def check_listing(path: Path, name: str, files: Iterable[str]) -> None:
    """Raises CheckpointError when there are no weights, or the index names one not in `files`: a path, say."""
    present = set(files)
    foreign = None if present else foreign_weights(path)
    if foreign:
        raise CheckpointError(
            f"{name} has its weights as {foreign}, and only safetensors are read: other forms can hold "
            "code; convert the model with `mlx_lm.convert` first."
        )
    if not present:
        raise CheckpointError(
            f"{name} has no weights ({WEIGHTS}); convert the model with `mlx_lm.convert` first."
        )
    index = path / INDEX
    if not index.is_file():
        return
    missing = sorted(set(_weight_map(index).values()) - present)
    if missing:
        raise CheckpointError(
            f"{index} names {missing[0]}, which is missing ({len(missing)} of its files are); "
            "copy or download the model again."
        )


def _weight_map(index: Path) -> dict[str, str]:
    try:
        weight_map = json.loads(index.read_text())["weight_map"]
        return {str(tensor): str(file) for tensor, file in weight_map.items()}
    except OSError as error:
        raise unreadable(index, error) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{index} is not a valid index of weights; download it again."
        ) from error
