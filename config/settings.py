"""The configuration in force, where each value came from, and how it is changed while running."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pydantic import ValidationError

from config.errors import ConfigError, InvalidSetting
from config.keys import Path, format_key, parse_key
from config.layers import Leaf, Leaves, Origin, Plain, merge, origin_of, spread, tree
from config.lookup import allows_auto, find, is_dynamic
from config.schema import Config
from config.sources import (
    find_directory,
    from_environment,
    from_files,
    from_overrides,
    from_short_forms,
    suggest,
)
from config.values import SIZE_EXPECTED
from config.yaml_text import write_value

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

DEFAULT = Origin("default")
RUNTIME = Origin("runtime")
_LONGEST_SHOWN = 80  # characters of a bad value in an error message

# Where pydantic's own words would not help somebody who edits YAML.
_REASONS = {
    "model_type": "should be a mapping of keys to values",
    "mapping_type": "should be a mapping of keys to values",
    "byte_size": SIZE_EXPECTED,
    "byte_size_unit": SIZE_EXPECTED,
    "string_pattern_mismatch": "should be a name of letters, digits, dots, - and _",
    "tuple_type": "should be a list",
}


@dataclass(frozen=True)
class Row:
    """One line of --print-config; `value` is YAML that `--set` reads back."""

    key: str
    value: str
    origin: str


@dataclass(frozen=True)
class Settings:
    """A validated configuration with the origin of every value."""

    config: Config
    given: Leaves  # everything that some source set; the rest are defaults

    def origin(self, key: str) -> str:
        """Where a value came from: "default", "config/cluster.yaml", "env MLXC_...", "--set", "runtime".

        Raises ConfigError when there is no such key.
        """
        path = _known_path(key)
        return (origin_of(self.given, path) or DEFAULT).source

    def describe(self) -> tuple[Row, ...]:
        """Every setting, in the order of the schema."""
        values = self.config.model_dump(mode="json")
        leaves = (leaf for name in values for leaf in spread((name,), values[name], DEFAULT))
        return tuple(
            Row(key, write_value(leaf.value), self.origin(key))
            for leaf in leaves
            for key in [format_key(leaf.path)]
        )

    def change(self, changes: Mapping[str, Plain]) -> Settings:
        """Settings with dynamic keys changed, all or none; a runtime change outranks every source.

        Raises ConfigError for an unknown key, a key that is not dynamic, and a value that is refused.
        """
        leaves: list[Leaf] = []
        for key, value in changes.items():
            path = _known_path(key)
            if not is_dynamic(path):
                raise ConfigError(f"{key} = {_shown(value)}: can't be changed while running.")
            leaves.extend(spread(path, value, RUNTIME))
        return _build(merge([*self.given.values(), *leaves]))


def load(
    directory: pathlib.Path | None,
    environ: Mapping[str, str],
    overrides: Sequence[str] = (),
    short: Mapping[str, object] | None = None,
) -> Settings:
    """Read and merge all sources: defaults < files < environment < --set < short forms.

    directory: folder with the YAML files; None: ./config if it holds cluster.yaml, else the shipped ones.
    overrides: "key=value" with a dotted key and a YAML value; short: values of --model and --port.
    Raises ConfigError with one sentence that names the place, the key and the value.
    """
    files = merge(from_files(find_directory(directory)))
    leaves = [
        *files.values(),
        *from_environment(environ, files),
        *from_overrides(overrides),
        *from_short_forms(short or {}),
    ]
    return _build(merge(leaves))


def _build(given: Leaves) -> Settings:
    try:
        config = Config.model_validate(tree(given))
    except ValidationError as error:
        raise ConfigError(_explain(error.errors(include_url=False), given)) from error
    return Settings(config, given)


def _explain(found: Sequence[ErrorDetails], given: Leaves) -> str:
    """One sentence: the first unknown key, which may be why another is missing, or the first error."""
    unknown = (details for details in found if details["type"] == "extra_forbidden")
    details = next(unknown, found[0])
    path = tuple(part for part in details["loc"] if part != "[key]")
    cause = details.get("ctx", {}).get("error")
    if isinstance(cause, InvalidSetting):
        path += cause.path
    names = tuple(part for part in path if isinstance(part, str))
    if details["type"] == "missing":
        parent = tuple(part for part in path[:-1] if isinstance(part, str))
        return f"{_place(given, parent)}{format_key(path)} is missing."
    if details["type"] == "extra_forbidden":
        shown = _shown(details["input"])
        return f"{_place(given, names)}there is no setting {_meant(names)}, so {shown} is refused."
    value = _value_at(given, path) if isinstance(cause, InvalidSetting) else details["input"]
    return f"{_place(given, names)}{format_key(path)} = {_shown(value)}: {_reason(details, names)}."


def _reason(details: ErrorDetails, names: Path) -> str:
    cause = details.get("ctx", {}).get("error")
    if isinstance(cause, ValueError):
        return str(cause)
    reason = _REASONS.get(details["type"]) or details["msg"].removeprefix("Input ")
    if details["type"] == "string_type" and isinstance(details["input"], (bool, int, float)):
        reason += "; put it in quotes"
    return reason[0].lower() + reason[1:] + (" or auto" if allows_auto(names) else "")


def _place(given: Leaves, names: Path) -> str:
    origin = origin_of(given, names)
    return f"{origin.place}: " if origin else ""


def _meant(path: Path) -> str:
    """The key, and the one that it was probably meant to be."""
    meant = suggest(path)
    return format_key(path) + (f" (did you mean {meant}?)" if meant else "")


def _value_at(given: Leaves, path: tuple[str | int, ...]) -> object:
    value: object = tree(given)
    for part in path:
        value = value.get(part) if isinstance(value, dict) and isinstance(part, str) else None
    return value


def _known_path(key: str) -> Path:
    try:
        path = parse_key(key)
    except ValueError as error:
        raise ConfigError(f"{error}.") from error
    if find(path) is None:
        raise ConfigError(f"There is no setting {_meant(path)}.")
    return path


def _shown(value: object) -> str:
    text = write_value(value)
    return text if len(text) <= _LONGEST_SHOWN else text[:_LONGEST_SHOWN] + "..."
