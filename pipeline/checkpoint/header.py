"""Headers of safetensors files, and stub files made of them.

A stub is a sparse file with a real header and no data, so that `mx.load` gives lazy arrays of the
right shape and dtype for a file that is not on this machine.  Once sealed, it ends right after its
header: evaluating one of those arrays raises, it never reads zeros.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import msgspec
from huggingface_hub import parse_local_safetensors_file_metadata
from huggingface_hub.errors import SafetensorsParsingError
from huggingface_hub.utils import SafetensorsFileMetadata

from pipeline.checkpoint.containment import unreadable
from pipeline.errors import CheckpointError

_LENGTH_BYTES = 8  # a safetensors file starts with the length of its JSON header, little endian


class TensorInfo(msgspec.Struct, frozen=True):
    """One tensor of a file.  `dtype` as safetensors spells it ("BF16"); offsets count from the header's end."""

    dtype: str
    shape: tuple[int, ...]
    data_offsets: tuple[int, int]


class Header(msgspec.Struct, frozen=True):
    tensors: dict[str, TensorInfo]

    @property
    def data_bytes(self) -> int:
        return max((info.data_offsets[1] for info in self.tensors.values()), default=0)

    @classmethod
    def of(cls, metadata: SafetensorsFileMetadata) -> Header:
        """The part of huggingface_hub's record that matters here."""
        return cls(
            {
                name: TensorInfo(info.dtype, tuple(info.shape), tuple(info.data_offsets))
                for name, info in metadata.tensors.items()
            }
        )


def read_header(path: Path) -> Header:
    """The header of the file at `path`.

    Raises CheckpointError when the header is broken, or the file is shorter than its header says.
    """
    try:
        header = Header.of(parse_local_safetensors_file_metadata(path))
        with path.open("rb") as file:
            length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
        size = path.stat().st_size
    except OSError as error:
        raise unreadable(path, error) from error
    except (SafetensorsParsingError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{path} is not a readable safetensors file; copy or download it again."
        ) from error
    expected = _LENGTH_BYTES + length + header.data_bytes
    if size < expected:
        raise CheckpointError(
            f"{path} is incomplete: {size} of {expected} bytes; copy or download it again."
        )
    return header


class Stub:
    """A header without data.  Load it with `mx.load`, then `seal` it before anything can be evaluated."""

    def __init__(self, path: Path, header: Header) -> None:
        text = msgspec.json.encode(header.tensors)
        self._path, self._end = path, _LENGTH_BYTES + len(text)
        with path.open("wb") as file:
            file.write(len(text).to_bytes(_LENGTH_BYTES, "little"))
            file.write(text)
            file.truncate(self._end + header.data_bytes)  # `mx.load` compares sizes

    def seal(self) -> None:
        os.truncate(self._path, self._end)


def files_of_tensors(headers: Mapping[str, Header]) -> dict[str, str]:
    """Tensor name -> name of the file that holds it."""
    return {tensor: file for file, header in headers.items() for tensor in header.tensors}
