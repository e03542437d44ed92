"""Values with their origins, and how later ones replace earlier ones.  Pure; knows no schema."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from config.keys import Path

# What YAML can say: scalars, lists and mappings with string keys.
Plain: TypeAlias = "bool | int | float | str | list[Plain] | dict[str, Plain] | None"


@dataclass(frozen=True)
class Origin:
    """Where a value was given."""

    source: str  # "config/cluster.yaml", "env MLXC_API_GATEWAY__PORT", "--set", "runtime"
    line: int | None = None  # from 1

    @property
    def place(self) -> str:
        return self.source if self.line is None else f"{self.source} line {self.line}"


@dataclass(frozen=True)
class Leaf:
    """A scalar, a list or an empty mapping; a mapping with entries is spread over its leaves."""

    path: Path
    value: Plain
    origin: Origin


Leaves = Mapping[Path, Leaf]


def spread(path: Path, value: Plain, origin: Origin) -> Iterator[Leaf]:
    """The leaves of a value that has one origin as a whole."""
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from spread((*path, key), inner, origin)
    else:
        yield Leaf(path, value, origin)


def merge(leaves: Iterable[Leaf]) -> Leaves:
    """The last leaf of each path wins.

    Mappings are merged entry by entry, lists are replaced.  A scalar or an empty mapping replaces a mapping,
    and an entry replaces a scalar that stands where its mapping should be.
    """
    merged: dict[Path, Leaf] = {}
    for leaf in leaves:
        for path in [path for path in merged if _nested(path, leaf.path)]:
            if path != leaf.path:
                del merged[path]
        merged[leaf.path] = leaf
    return merged


def tree(leaves: Leaves) -> dict[str, Plain]:
    """The nested mapping that merged leaves stand for."""
    root: dict[str, Plain] = {}
    for path, leaf in leaves.items():
        inner = root
        for part in path[:-1]:
            below = inner.setdefault(part, {})
            assert isinstance(below, dict)  # merged leaves don't nest
            inner = below
        inner[path[-1]] = leaf.value
    return root


def origin_of(leaves: Leaves, path: Path) -> Origin | None:
    """The origin of a leaf, of the leaf that `path` lies in, or of the first leaf below `path`."""
    return next((leaf.origin for other, leaf in leaves.items() if _nested(other, path)), None)


def _nested(one: Path, other: Path) -> bool:
    """Whether one path is the beginning of the other."""
    length = min(len(one), len(other))
    return one[:length] == other[:length]
