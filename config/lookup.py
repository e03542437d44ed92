"""What the schema says of a dotted key: does it exist, is it dynamic, what may stand below it."""

from __future__ import annotations

import types
import typing
from collections.abc import Mapping

from pydantic.fields import FieldInfo

from config.keys import Path
from config.schema import Config
from config.section import Section
from config.values import ALLOWS_AUTO


class Place(typing.NamedTuple):
    """One key of the schema."""

    kind: object  # annotation of what stands there
    field: FieldInfo | None  # None for the root and for the entries of a mapping

    @property
    def keys(self) -> tuple[str, ...] | None:
        """Names that may follow; empty below a value, None below a mapping: any name."""
        section = _section(self.kind)
        if section is not None:
            return tuple(name for name, field in section.model_fields.items() if not field.exclude)
        return None if _entry_kind(self.kind) is not None else ()

    def child(self, name: str) -> Place | None:
        section = _section(self.kind)
        if section is not None:
            field = section.model_fields.get(name)
            return None if field is None or field.exclude else Place(field.annotation, field)
        entry = _entry_kind(self.kind)
        return None if entry is None else Place(entry, None)


ROOT = Place(Config, None)


def find(path: Path) -> Place | None:
    """The place of a key, or None when the schema has no such key."""
    place: Place | None = ROOT
    for part in path:
        place = place.child(part) if place is not None else None
    return place


def is_dynamic(path: Path) -> bool:
    """Whether the key can be changed while the program runs."""
    place = find(path)
    extra = place.field.json_schema_extra if place is not None and place.field is not None else None
    return isinstance(extra, dict) and extra.get("dynamic") is True


def allows_auto(path: Path) -> bool:
    place = find(path)
    return place is not None and place.field is not None and ALLOWS_AUTO in place.field.metadata


def _section(kind: object) -> type[Section] | None:
    return kind if isinstance(kind, type) and issubclass(kind, Section) else None


def _entry_kind(kind: object) -> object:
    """X of `Mapping[str, X]`, also inside Annotated and Optional; None for anything else."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is Mapping:
        return arguments[1]
    if origin is typing.Annotated:
        return _entry_kind(arguments[0])
    if origin in (typing.Union, types.UnionType):
        kinds = (_entry_kind(argument) for argument in arguments)
        return next((inner for inner in kinds if inner is not None), None)
    return None
