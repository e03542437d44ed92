"""What is known of the nodes. Answers of a probe are read into these records, and refused if they don't fit."""

from __future__ import annotations

import msgspec


class Port(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A port that a node will listen on. `use`: the setting that wants it; `error`: why it can't be had."""

    use: str
    number: int
    error: str = ""
    user: str = ""  # the process that has it, where it may be known


class Interface(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The network interface that has an address. `kind`: ethernet, wifi, thunderbolt, loopback or other."""

    address: str
    name: str = ""  # empty: no interface has the address
    kind: str = "other"
    up: bool = False
    mbits: int = 0  # nominal speed; 0 if unknown


class Certificates(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Those that a node serves with. `ends`: the day on which the first of them expires."""

    error: str = ""  # why they can't be used
    ends: str = ""
    soon: bool = False


class File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One that every node must have alike, by the setting that names it."""

    use: str
    path: str
    found: bool = True
    error: str = ""  # why it can't be read
    digest: str = ""
    open_to_others: bool = False


class Memory(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """In bytes. `wired_limit`: what macOS keeps resident for the GPU at most; None elsewhere, 0 if default."""

    total: int
    available: int
    wired_limit: int | None = None


class Disk(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where the model is, or will be put. `held`: bytes of it that are there already."""

    folder: str
    free: int
    held: int
    found: bool


class NodeFacts(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a probe has seen on one node."""

    system: str  # as "Darwin arm64"
    python: str
    packages: dict[str, str]
    code: str  # digest of the project's source files
    settings: dict[str, str]  # section to digest; empty with an error
    settings_error: str
    ports: tuple[Port, ...]
    interfaces: tuple[Interface, ...]
    files: tuple[File, ...]
    certificates: Certificates | None  # None: without TLS
    memory: Memory | None
    disk: Disk | None
    open_files: int  # hard limit
    began: float  # the node's clock, seconds since 1970, when the probe started and when it ended
    ended: float


class LinkFacts(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A connection between two nodes, measured by the one that opened it."""

    interface: Interface
    seconds: float  # of a round trip, the median
    bytes_per_second: float


class Asked(msgspec.Struct, frozen=True):
    """A node's answer, and between which two moments of this machine's clock it came."""

    node: str
    host: str  # the name for ssh
    began: float
    ended: float
    facts: NodeFacts | None = None
    problem: str = ""  # without facts: why there are none
    advice: str = ""


class Link(msgspec.Struct, frozen=True):
    """From one node to the next in the ring."""

    source: str
    target: str
    facts: LinkFacts | None = None
    problem: str = ""


class Stage(msgspec.Struct, frozen=True):
    """What one node will hold; the answer of `python -m pipeline.plan --json`."""

    node: str
    layers: tuple[int, int]  # first and last
    parameter_bytes: int


class PlanFacts(msgspec.Struct, frozen=True):
    model: str
    stages: tuple[Stage, ...] = ()
    problem: str = ""  # without stages: why there is no plan


class Survey(msgspec.Struct, frozen=True):
    """All that was learnt, nodes in rank order."""

    nodes: tuple[Asked, ...]
    links: tuple[Link, ...]
    plan: PlanFacts
