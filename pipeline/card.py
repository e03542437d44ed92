"""The card that each rank shows the others before anything is planned."""

from __future__ import annotations

import os
import platform
import secrets
from collections.abc import Mapping
from importlib.metadata import version

import msgspec
import structlog

from config import Config, NodeConfig, settings_digests
from pipeline.frames import PROTOCOL
from pipeline.machine import address_towards, machine_id

log = structlog.get_logger()

PROJECT = "mlx-cluster"
VERSIONED = (PROJECT, "mlx-lm", "mlx")
"""Packages whose versions must be the same on all nodes: another mlx-lm may make another model of the files."""


class Introduction(msgspec.Struct, frozen=True):
    """The part of a card that every version of this project can read."""

    node: str
    protocol: int = 0  # of the frames; 0: from before cards named it
    versions: dict[str, str] = {}


class Card(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a rank tells all others.  Read it only when its Introduction fits."""

    epoch: int  # rank 0's counts
    node: str
    protocol: int
    machine: str  # equal for ranks on the same machine
    host: str  # by which other machines reach this one; empty: unknown
    pid: int
    python: str
    versions: dict[str, str]
    memory_bytes: int  # that weights and caches may take, of this machine
    speed: float
    settings: dict[str, str]  # section to digest of what must be configured alike
    fingerprint: str = ""  # of the model; empty with an error
    error: str = ""  # why this rank can't take part


def make_card(
    config: Config, node: NodeConfig, memory_bytes: int, fingerprint: str = "", error: str = ""
) -> Card:
    """The card of this process."""
    return Card(
        epoch=secrets.randbits(48),
        node=node.name,
        protocol=PROTOCOL,
        machine=machine_id(),
        host=_host(config, node),
        pid=os.getpid(),
        python=platform.python_version(),
        versions={package: version(package) for package in VERSIONED},
        memory_bytes=memory_bytes,
        speed=node.speed,
        settings=settings_digests(config),
        fingerprint=fingerprint,
        error=error,
    )


def _host(config: Config, node: NodeConfig) -> str:
    """As configured; else the address by which this machine reaches the coordinator; "" if none is known."""
    if _is_placed(config, node):
        return node.host
    first = config.node_of_rank(0, 1)
    leader = config.coordinator.reached_at(first.host if _is_placed(config, first) else "")
    if not leader:
        return ""
    try:
        return address_towards(leader)
    except OSError as error:
        log.warning("no way to the coordinator's host", host=leader, reason=str(error))
        return ""


def _is_placed(config: Config, node: NodeConfig) -> bool:
    """Whether nodes.yaml says where other machines find the node."""
    return node.name in config.nodes and node.address != "localhost"


def differing_sections(one: Mapping[str, str], other: Mapping[str, str]) -> list[str]:
    """Sections with different digests."""
    return sorted(key for key in one.keys() | other.keys() if one.get(key) != other.get(key))
