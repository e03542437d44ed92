"""What travels from one stage to the next: taken apart into arrays, and put together again."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from typing import Any, TypeAlias

import mlx.core as mx
import msgspec

from pipeline.errors import FrameError

Tree: TypeAlias = Any
"""None, an array, or a tuple, list or dict (keys: words) of trees."""

DTYPES: dict[str, mx.Dtype] = {
    name: getattr(mx, name)
    for name in (
        "bool_", "uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64",
        "float16", "bfloat16", "float32", "float64", "complex64",
    )
}  # fmt: skip
_NAMES: dict[mx.Dtype, str] = {dtype: name for name, dtype in DTYPES.items()}

MAX_DIMENSIONS = 8
MAX_BYTES = 1 << 34  # of one tensor; far above any hidden state, far below a nonsense allocation
MAX_DEPTH = 16
MAX_WIDTH = 4096  # of one tuple or list

_WORD = r"[A-Za-z0-9_\-]+"
_STEP = re.compile(rf"\.({_WORD})|\[(\d{{1,4}})/(\d{{1,4}})\]|\((\d{{1,4}})/(\d{{1,4}})\)")
_KEY = re.compile(_WORD)


@dataclass(frozen=True, eq=False, slots=True)
class Message:
    """The state of one step between two layers.

    `tokens`: the step's token ids, int32 [B, L].  Every stage needs them for shapes, and some models for more.
    `tree`: arrays in tuples, lists and dicts; what they are is between the stages of one architecture.
    """

    tokens: mx.array
    tree: Tree


class TensorSpec(msgspec.Struct, frozen=True):
    """One array of a message: its place in the tree, its shape, and its dtype by MLX's name.

    `packed_from`: the dtype that it had before `pipeline.split.encoding` made it smaller; empty if it did not.
    `scales`: of each vector along the last axis, where it was made int8.

    The place is a path such as `.hidden` or `.kv(0/2)[1/3]`: `.key` in a dict, `(i/n)` in a tuple
    of n, `[i/n]` in a list of n.  The empty path is the tree itself.  Raises FrameError on values
    that no message can have.
    """

    path: str
    shape: tuple[int, ...]
    dtype: str
    packed_from: str = ""
    scales: int = 0

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise FrameError(f"A tensor has the unknown dtype {self.dtype!r}.")
        if self.packed_from and self.packed_from not in DTYPES:
            raise FrameError(f"A tensor is packed from the unknown dtype {self.packed_from!r}.")
        if len(self.shape) > MAX_DIMENSIONS or any(n < 0 for n in self.shape):
            raise FrameError(f"A tensor has the impossible shape {self.shape}.")
        if prod(self.shape) * DTYPES[self.dtype].size > MAX_BYTES:
            raise FrameError(f"A tensor of shape {self.shape} is larger than {MAX_BYTES} bytes.")
        _steps(self.path)

    @property
    def mlx_dtype(self) -> mx.Dtype:
        """The dtype, as MLX wants it."""
        return DTYPES[self.dtype]

    @property
    def nbytes(self) -> int:
        """Size of the array in bytes."""
        return prod(self.shape) * self.mlx_dtype.size


def flatten(message: Message) -> tuple[tuple[TensorSpec, ...], list[mx.array]]:
    """Take the arrays out of `message.tree`: one spec for each array, in the same order.

    Nothing is evaluated.  Raises TypeError for a leaf that is no array, ValueError for a dict key
    that is no word.
    """
    specs: list[TensorSpec] = []
    arrays: list[mx.array] = []
    _flatten("", message.tree, specs, arrays)
    return tuple(specs), arrays


def _flatten(path: str, tree: Tree, specs: list[TensorSpec], arrays: list[mx.array]) -> None:
    if isinstance(tree, mx.array):
        specs.append(TensorSpec(path, tree.shape, _NAMES[tree.dtype]))
        arrays.append(tree)
    elif isinstance(tree, dict):
        for key, value in tree.items():
            if not _KEY.fullmatch(key):
                raise ValueError(f"The key {key!r} of a message is not a word.")
            _flatten(f"{path}.{key}", value, specs, arrays)
    elif isinstance(tree, tuple):
        for i, value in enumerate(tree):
            _flatten(f"{path}({i}/{len(tree)})", value, specs, arrays)
    elif isinstance(tree, list):
        for i, value in enumerate(tree):
            _flatten(f"{path}[{i}/{len(tree)}]", value, specs, arrays)
    elif tree is not None:
        raise TypeError(f"A message can't hold {type(tree).__name__!r} at {path!r}.")


def unflatten(tokens: mx.array, specs: Sequence[TensorSpec], arrays: Sequence[mx.array]) -> Message:
    """The reverse of `flatten`, on the receiving stage.

    None, and a container without any array, have no spec: a dict comes back without them, a tuple or
    list with None in their place.  Raises FrameError if the arrays are not those of the specs, or the
    paths contradict each other.
    """
    if len(specs) != len(arrays):
        raise FrameError(f"A message announces {len(specs)} tensors and brings {len(arrays)}.")
    for spec, array in zip(specs, arrays, strict=True):
        if array.shape != spec.shape or array.dtype != DTYPES[spec.dtype]:
            raise FrameError(
                f"The tensor at {spec.path!r} is {array.dtype} {array.shape}, "
                f"but {spec.dtype} {spec.shape} was announced."
            )
    return Message(tokens, _fill(_outline(tuple(spec.path for spec in specs)), arrays))


# An outline is None, the index of an array, or a container of outlines.
Outline: TypeAlias = Any


def _fill(outline: Outline, arrays: Sequence[mx.array]) -> Tree:
    if isinstance(outline, int):
        return arrays[outline]
    if isinstance(outline, dict):
        return {key: _fill(value, arrays) for key, value in outline.items()}
    if isinstance(outline, (tuple, list)):
        return type(outline)(_fill(value, arrays) for value in outline)
    return None


@lru_cache(maxsize=256)
def _outline(paths: tuple[str, ...]) -> Outline:
    """The containers that `paths` describe.  Cached: a model sends the same few sets in every step."""
    return _build([(path, _steps(path), i) for i, path in enumerate(paths)])


@dataclass(frozen=True, slots=True)
class _Step:
    """One step down: a dict's key (`size` 0), or position `key` of `size` in a tuple or list."""

    kind: type[dict[str, Any]] | type[tuple[Any, ...]] | type[list[Any]]
    key: str | int
    size: int


@lru_cache(maxsize=4096)
def _steps(path: str) -> tuple[_Step, ...]:
    steps: list[_Step] = []
    position = 0
    while position < len(path):
        match = _STEP.match(path, position)
        if match is None or len(steps) == MAX_DEPTH:
            raise FrameError(f"A tensor has the bad path {path!r}.")
        steps.append(_step(path, match))
        position = match.end()
    return tuple(steps)


def _step(path: str, match: re.Match[str]) -> _Step:
    word, list_index, list_size, tuple_index, tuple_size = match.groups()
    if word is not None:
        return _Step(dict, word, 0)
    kind = list if list_index is not None else tuple
    index, size = int(list_index or tuple_index), int(list_size or tuple_size)
    if not index < size <= MAX_WIDTH:
        raise FrameError(f"A tensor has the bad path {path!r}.")
    return _Step(kind, index, size)


def _build(leaves: list[tuple[str, tuple[_Step, ...], int]]) -> Outline:
    if not leaves:
        return None
    path, steps, index = leaves[0]
    if not steps:
        if len(leaves) > 1:
            raise FrameError(f"The tensor at {path!r} stands where others do.")
        return index
    kind, size = steps[0].kind, steps[0].size
    children: dict[str | int, list[tuple[str, tuple[_Step, ...], int]]] = {}
    for path, steps, index in leaves:
        if not steps or steps[0].kind is not kind or steps[0].size != size:
            raise FrameError(f"The path {path!r} contradicts the one before it.")
        children.setdefault(steps[0].key, []).append((path, steps[1:], index))
    built: dict[str | int, Outline] = {key: _build(under) for key, under in children.items()}
    if kind is dict:
        return built
    items = [built.get(i) for i in range(size)]
    return tuple(items) if kind is tuple else items
