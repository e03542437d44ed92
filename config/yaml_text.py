"""YAML in and out: plain data only, with line numbers, and nothing that could hide a mistake.

Duplicate keys, keys that are not strings, aliases and tags beyond YAML's plain types are refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import yaml

from config.errors import ConfigError
from config.keys import Path, format_key
from config.layers import Leaf, Origin, Plain

_TAGS = {
    f"tag:yaml.org,2002:{name}" for name in ("null", "bool", "int", "float", "str", "seq", "map")
}


class _Loader(yaml.SafeLoader):
    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
        if self.check_event(yaml.AliasEvent):
            raise yaml.composer.ComposerError(None, None, "aliases are not allowed", mark)
        node = super().compose_node(parent, index)
        if node is not None and node.tag not in _TAGS:
            raise yaml.composer.ComposerError(None, None, f"{node.tag} is not allowed", mark)
        return node


# Dates stay text: nothing here is a date, but a revision may look like one.
_Loader.yaml_implicit_resolvers = {
    first: [(tag, regexp) for tag, regexp in resolvers if not tag.endswith(":timestamp")]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


class _Dumper(yaml.SafeDumper):
    """Text with line breaks is escaped, so that every value takes one line."""

    def represent_str(self, data: str) -> yaml.ScalarNode:
        style = '"' if "\n" in data else None
        return self.represent_scalar("tag:yaml.org,2002:str", data, style=style)


_Dumper.add_representer(str, _Dumper.represent_str)

# 1e9 is a number, as in YAML 1.2; in 1.1, which PyYAML reads, it would have to be 1.0e+9.
_EXPONENT = re.compile(r"[-+]?(?:[0-9][0-9_]*\.?[0-9_]*|\.[0-9][0-9_]*)[eE][-+]?[0-9]+$")
for _yaml in (_Loader, _Dumper):
    _yaml.add_implicit_resolver("tag:yaml.org,2002:float", _EXPONENT, list("-+.0123456789"))


def read_leaves(text: str, source: str) -> Iterator[Leaf]:
    """The leaves of one YAML document that is a mapping.  Raises ConfigError naming the line."""
    root = _compose(text, source)
    if root is None or _is_null(root):
        return
    if not isinstance(root, yaml.MappingNode):
        raise ConfigError(f"{_place(root, source)}: should be a mapping of keys to values.")
    if not root.value:
        return
    yield from _leaves_of(root, (), source)


def read_value(text: str, source: str) -> Plain:
    """One scalar or flow value, as in `--set key=value`.  Raises ConfigError."""
    root = _compose(text, source)
    if root is None:
        raise ConfigError(f"{source}: the value is empty; write null if that is meant.")
    return _plain(root, source)


def write_value(value: object) -> str:
    """One line of YAML that `read_value` reads back to the same value."""
    text = yaml.dump(value, Dumper=_Dumper, default_flow_style=True, width=float("inf"))
    return text.removesuffix("\n").removesuffix("\n...")


def _compose(text: str, source: str) -> yaml.Node | None:
    try:
        loader = _Loader(text)
        return loader.get_single_node()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = source if mark is None or "\n" not in text else f"{source} line {mark.line + 1}"
        raise ConfigError(f"{place}: not valid YAML: {error.problem}.") from error
    except yaml.reader.ReaderError as error:
        raise ConfigError(f"{source}: not valid YAML: {error.reason}.") from error
    except RecursionError as error:
        raise ConfigError(f"{source}: not valid YAML: nested too deeply.") from error


def _leaves_of(node: yaml.Node, path: Path, source: str) -> Iterator[Leaf]:
    if isinstance(node, yaml.MappingNode) and node.value:
        for key, inner in _entries(node, path, source):
            if not path and _is_null(inner):
                continue  # a section with nothing but comments
            yield from _leaves_of(inner, (*path, key), source)
    else:
        yield Leaf(path, _plain(node, source, path), Origin(source, node.start_mark.line + 1))


def _entries(node: yaml.MappingNode, path: Path, source: str) -> Iterator[tuple[str, yaml.Node]]:
    seen: dict[str, int] = {}
    for key_node, inner in node.value:
        place = _place(key_node, source)
        key = _plain(key_node, source, path) if isinstance(key_node, yaml.ScalarNode) else None
        if not isinstance(key, str) or not key:
            shown = key_node.value if isinstance(key_node, yaml.ScalarNode) else "a collection"
            raise ConfigError(f"{place}: the key {shown} is not text; put it in quotes.")
        if key in seen:
            dotted = format_key((*path, key))
            raise ConfigError(f"{place}: {dotted} is given twice, first on line {seen[key]}.")
        seen[key] = key_node.start_mark.line + 1
        yield key, inner


def _plain(node: yaml.Node, source: str, path: Path = ()) -> Plain:
    if isinstance(node, yaml.MappingNode):
        return {
            key: _plain(inner, source, (*path, key)) for key, inner in _entries(node, path, source)
        }
    if isinstance(node, yaml.SequenceNode):
        return [_plain(inner, source, path) for inner in node.value]
    try:
        value: Plain = yaml.constructor.SafeConstructor().construct_object(node)
    except (ValueError, KeyError) as error:  # an explicit tag that the text does not fit
        raise ConfigError(f"{_place(node, source)}: {node.value} is not {node.tag}.") from error
    return value


def _is_null(node: yaml.Node) -> bool:
    return bool(node.tag == "tag:yaml.org,2002:null")


def _place(node: yaml.Node, source: str) -> str:
    return f"{source} line {node.start_mark.line + 1}"
