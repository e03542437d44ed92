"""Kernels that MLX has compiled for the processor, in files that all processes of this machine share.

MLX has the compiler write each one where the next process looks for it, and takes what it finds for whole.
What a compiler that was killed has left there would fail every rank from then on.
"""

from __future__ import annotations

import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from struct import Struct

import structlog

log = structlog.get_logger()

SETTLED = 60.0  # seconds since the last write, after which no compiler is at it any more
ELF = b"\x7fELF\x02\x01"  # 64 bits, little-endian
# Of ELF's header: where the table of sections begins, bytes of an entry, entries.
_SECTIONS = Struct("<40xQ10xHH2x")


def folder() -> Path:
    """Where this version of MLX keeps them."""
    return Path(tempfile.gettempdir(), "mlx", version("mlx"), "cpu")


def remove_broken(place: Path, now: float) -> list[Path]:
    """Remove libraries that end too early, if nobody has written to them lately; returns them.

    `now`: time.time().  What belongs to somebody else is left alone.
    """
    return [path for path in sorted(place.glob("lib*.so")) if _removed(path, now)]


def _removed(path: Path, now: float) -> bool:
    try:
        if now - path.stat().st_mtime <= SETTLED or _whole(path):
            return False
        path.unlink()
    except (FileNotFoundError, PermissionError):
        return False
    return True


def remove_broken_kernels() -> None:
    """For a rank, before it computes."""
    for path in remove_broken(folder(), time.time()):
        log.warning("removed a kernel whose compiler had been cut off", path=str(path))


def _whole(path: Path) -> bool:
    """Linkers write the table of sections last.  In a format not known here, all but nothing is whole."""
    size = path.stat().st_size
    with path.open("rb") as file:
        header = file.read(_SECTIONS.size)
    if not header.startswith(ELF):
        return any(header)
    if len(header) < _SECTIONS.size:
        return False
    start, entry, count = map(int, _SECTIONS.unpack(header))
    return start > 0 and start + entry * count <= size
