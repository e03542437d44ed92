"""Small hidden states travel inside the frame that says that they are there, not behind it on the ring.

What mx.distributed takes beside the network does not depend on the size: threads hand over to each other, and
on CUDA the CPU and the GPU wait for each other by events that cost more than several layers.  For the few KiB
of a decode step that was most of a hop.  The receiving stage builds its graph on a blank, to be filled later.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate

import mlx.core as mx
import numpy as np

from pipeline.errors import FrameError
from pipeline.split import TensorSpec

LARGEST = 64 << 10
"""Bytes of a message that travels in its frame, moved by the thread of the engine, which waits for that."""

ALIGNMENT = 16  # bytes; where each tensor of a parcel begins

OWN_SIZE = LARGEST + (16 << 10)
"""Bytes of the buffer of a parcel on CUDA.  There MLX moves a buffer that the CPU looks into to unified memory,
which takes longer than a layer, and keeps it for the next array of about that size.  Nothing else that a step
makes is likely to have this one, so that parcels get buffers that were moved before."""


def fits(specs: Sequence[TensorSpec]) -> bool:
    """Whether these tensors travel as a parcel.  Both sides must come to the same answer."""
    return 0 < sum(spec.nbytes for spec in specs) <= LARGEST


def wrapped(arrays: Sequence[mx.array]) -> mx.array:
    """All bytes of `arrays` in one array; lazy."""
    parts = []
    for array in arrays:
        parts += [array.reshape(-1).view(mx.uint8), _zeros(_padding(array.nbytes))]
    size = sum(part.size for part in parts)
    filled = [part for part in (*parts, _zeros(_room(size) - size)) if part.size]
    return filled[0] if len(filled) == 1 else mx.concatenate(filled)


def unwrapped(parcel: mx.array, specs: Sequence[TensorSpec]) -> bytes:
    """What goes into the frame, of an array that `wrapped` gave for tensors of `specs`; waits for it."""
    _, size = _layout(specs)
    return bytes(memoryview(parcel)[:size])  # type: ignore[arg-type]


def parcel_of(values: np.ndarray) -> bytes:
    """What `unwrapped` gives for one array with these values."""
    data = values.tobytes()
    return data + bytes(_padding(len(data)))


class Blank:
    """Arrays to build a graph on before what they hold has arrived.

    `fill` has to come before anything that depends on them is evaluated.
    """

    def __init__(self, specs: Sequence[TensorSpec]) -> None:
        places, self._size = _layout(specs)
        self._buffer = mx.array(np.zeros(_room(self._size), np.uint8))
        self.arrays = [
            self._buffer[place : place + spec.nbytes].view(spec.mlx_dtype).reshape(spec.shape)
            for spec, place in zip(specs, places, strict=True)
        ]

    def fill(self, parcel: bytes) -> None:
        """Write what has arrived.  Raises FrameError if it is not of the size that was announced."""
        if len(parcel) != self._size:
            raise FrameError(f"a parcel has {len(parcel)} bytes, {self._size} were announced")
        view = np.array(self._buffer, copy=False)
        view[: self._size] = np.frombuffer(parcel, np.uint8)


def _layout(specs: Sequence[TensorSpec]) -> tuple[list[int], int]:
    """Where each tensor begins, and where the last one ends."""
    sizes = [spec.nbytes + _padding(spec.nbytes) for spec in specs]
    *places, end = accumulate(sizes, initial=0)
    return places, end


def _padding(size: int) -> int:
    return -size % ALIGNMENT


def _room(size: int) -> int:
    return max(size, OWN_SIZE) if mx.cuda.is_available() else size


@lru_cache(maxsize=64)
def _zeros(count: int) -> mx.array:
    zeros = mx.zeros((count,), mx.uint8)
    mx.eval(zeros)  # any thread may use it
    return zeros
