"""A survey of three nodes with which all is well."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from msgspec.structs import replace

from launcher.doctor.facts import (
    Asked,
    Disk,
    Interface,
    Link,
    LinkFacts,
    Memory,
    NodeFacts,
    PlanFacts,
    Port,
    Stage,
    Survey,
)

GIB = 2**30
NAMES = ("mini1", "mini2", "master")

FACTS = NodeFacts(
    system="Darwin arm64",
    python="3.12.4",
    packages={"mlx-cluster": "1", "mlx": "2", "mlx-lm": "3", "transformers": "4"},
    code="abc",
    settings={"cluster": "1", "nodes": "2"},
    settings_error="",
    ports=(Port("nodes.n.ports", 8101),),
    interfaces=(Interface("10.0.0.1", "en0", "ethernet", True, 10000),),
    files=(),
    certificates=None,
    memory=Memory(16 * GIB, 12 * GIB),
    disk=Disk("/models", 100 * GIB, 0, False),
    open_files=-1,
    began=1000.3,
    ended=1000.5,
)
ETHERNET = Interface("10.0.0.1", "en0", "ethernet", True, 10000)
GOOD_LINK = LinkFacts(ETHERNET, 0.0002, 1.1e9)


def survey(**changes: Any) -> Survey:
    """`changes` are fields of the facts of mini2."""
    asked = [Asked(name, f"{name}.local", 1000.0, 1001.0, FACTS) for name in NAMES]
    asked[1] = replace(asked[1], facts=replace(FACTS, **changes))
    links = tuple(Link(a, b, GOOD_LINK) for a, b in pairwise(NAMES))
    stages = tuple(Stage(name, (9 * i, 9 * i + 8), 4 * GIB) for i, name in enumerate(NAMES))
    return Survey(tuple(asked), links, PlanFacts("m", stages))
