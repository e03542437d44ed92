"""The card that each rank shows the others before anything is planned."""

from __future__ import annotations

import os
import platform
import secrets
from collections.abc import Mapping
from importlib.metadata import version

import msgspec

from config import Config, NodeConfig, settings_digests
from pipeline.frames import PROTOCOL
from pipeline.machine import machine_id

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
        pid=os.getpid(),
        python=platform.python_version(),
        versions={package: version(package) for package in VERSIONED},
        memory_bytes=memory_bytes,
        speed=node.speed,
        settings=settings_digests(config),
        fingerprint=fingerprint,
        error=error,
    )


def differing_sections(one: Mapping[str, str], other: Mapping[str, str]) -> list[str]:
    """Sections with different digests."""
    return sorted(key for key in one.keys() | other.keys() if one.get(key) != other.get(key))
