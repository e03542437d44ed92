"""Where settings come from: the YAML files, the environment, the command line."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Iterable, Iterator, Mapping, Sequence

from config.errors import ConfigError
from config.keys import Path, closest, format_key, parse_key
from config.layers import Leaf, Leaves, Origin, Plain, spread
from config.lookup import ROOT, find
from config.yaml_text import read_leaves, read_value

# Each section stands in one file only, so that there is no order among files.
FILES = {
    "cluster.yaml": (
        "cluster",
        "coordinator",
        "api_gateway",
        "scheduler",
        "launcher",
        "tracing",
        "access",
    ),
    "nodes.yaml": ("nodes",),
    "models.yaml": ("default_model", "models"),
    "network.yaml": ("network", "tls"),
    "observe.yaml": ("observe",),
}
PREFIX = "MLXC_"

# Variables with the prefix that are not settings, and who reads them.
PLAIN_VARIABLES = {
    "MLXC_CACHE_DIR": "Folder for converted models; read by whoever converts or opens them.",
}

SHIPPED = pathlib.Path(__file__).parent


def find_directory(asked: pathlib.Path | None) -> pathlib.Path:
    """`asked`, else ./config if it holds cluster.yaml, else the files shipped with the package."""
    if asked is None:
        local = pathlib.Path("config")
        return local if (local / "cluster.yaml").is_file() else SHIPPED
    if not any((asked / name).is_file() for name in FILES):
        raise ConfigError(f"{asked} is not a folder with {', '.join(FILES)}.")
    return asked


def from_files(directory: pathlib.Path) -> Iterator[Leaf]:
    """Leaves of the YAML files that exist.  Raises ConfigError for a YAML file of another name."""
    for path in sorted(directory.glob("*.y*ml")):
        if path.name not in FILES:
            meant = closest(path.name, FILES)
            hint = f"did you mean {meant}?" if meant else f"known are {', '.join(FILES)}"
            raise ConfigError(f"{path}: no file of this name is read ({hint}).")
    for name in FILES:
        path = directory / name
        if os.path.lexists(path):  # whatever it is: a link to nowhere is not left out silently
            yield from _from_file(path)


def _from_file(path: pathlib.Path) -> Iterator[Leaf]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: can't be read: {error}.") from error
    for leaf in read_leaves(text, str(path)):
        section = leaf.path[0]
        home = next((name for name, sections in FILES.items() if section in sections), None)
        if home not in (None, path.name):
            raise ConfigError(f"{leaf.origin.place}: {section} belongs into {home}.")
        yield leaf


def from_environment(environ: Mapping[str, str], named: Leaves) -> Iterator[Leaf]:
    """Leaves of all variables with the prefix.

    Names of nodes and models are found among those of `named`: MLXC_MODELS__QWEN2_5_7B__REVISION is
    models."qwen2.5-7b".revision.  Raises ConfigError for a variable that is no setting.
    """
    for variable in sorted(environ):
        if variable.startswith(PREFIX) and variable not in PLAIN_VARIABLES:
            path = _path_of_variable(variable, environ[variable], named)
            value = read_value(environ[variable], f"env {variable}")
            yield from spread(path, value, Origin(f"env {variable}"))


def from_overrides(overrides: Sequence[str]) -> Iterator[Leaf]:
    """Leaves of `--set key=value`, the value in YAML."""
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals:
            raise ConfigError(f"--set {override}: should be key=value.")
        try:
            path = parse_key(key.strip())
        except ValueError as error:
            raise ConfigError(f"--set {override}: {error}.") from error
        yield from spread(path, read_value(text, f"--set {key}"), Origin("--set"))


SHORT_FORMS: Mapping[str, Path] = {
    "model": ("default_model",),
    "port": ("api_gateway", "port"),
}


def from_short_forms(short: Mapping[str, object]) -> Iterator[Leaf]:
    """Leaves of `--model X` and `--port N`; None: not given."""
    for name, value in short.items():
        if value is not None:
            yield Leaf(SHORT_FORMS[name], _scalar(value), Origin(f"--{name}"))


def _scalar(value: object) -> Plain:
    return value if isinstance(value, (bool, int, float, str)) else str(value)


def _path_of_variable(variable: str, value: str, named: Leaves) -> Path:
    path: Path = ()
    place = ROOT
    for part in variable.removeprefix(PREFIX).split("__"):
        names = place.keys
        if names is None:
            names = _names_below(path, named)
        spelled = {_as_variable(name): name for name in names}
        name = spelled.get(part.upper())
        following = place.child(name) if name is not None else None
        if name is None or following is None:
            raise ConfigError(_unknown_variable(variable, value, len(path), spelled))
        path, place = (*path, name), following
    return path


def _names_below(path: Path, named: Leaves) -> tuple[str, ...]:
    depth = len(path)
    below = {p[depth]: None for p in named if len(p) > depth and p[:depth] == path}
    return tuple(below)


def _as_variable(name: str) -> str:
    return name.upper().replace("-", "_").replace(".", "_")


def _unknown_variable(variable: str, value: str, depth: int, known: Iterable[str]) -> str:
    parts = variable.removeprefix(PREFIX).upper().split("__")
    meant = closest(parts[depth], known)
    likely = PREFIX + "__".join([*parts[:depth], meant or "", *parts[depth + 1 :]])
    hint = f" (did you mean {likely}?)" if meant else ""
    return f"env {variable} = {value}: there is no such setting{hint}."


def suggest(path: Path) -> str | None:
    """The dotted key that an unknown key was probably meant to be."""
    parent = find(path[:-1])
    meant = closest(path[-1], parent.keys or ()) if parent is not None else None
    return format_key((*path[:-1], meant)) if meant else None
