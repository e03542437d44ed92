"""Nodes: what config/nodes.yaml says of each Mac, and the rule for ranks it does not name."""

from __future__ import annotations

import ipaddress
from collections.abc import Collection
from typing import NamedTuple

from pydantic import Field

from config.errors import ConfigError
from config.section import Section
from config.values import Auto, Factor, Index, Port, Share, Size, Text

FIRST_BLOCK = 8100  # each node has a block of a hundred ports; the gateway's lies below
BLOCK = 100
LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})


class Ports(NamedTuple):
    """In YAML a list in this order."""

    inference: Port
    communication: Port
    health: Port


class NodeConfig(Section):
    name: str = Field(
        default="", exclude=True, description="The node's name: its key in nodes.yaml."
    )
    node_id: Index = Field(
        description="Number of the node; orders the ranks unless cluster.ranks does."
    )
    host: Text = Field(
        description="Host name or address by which the other nodes reach this one; with the ring "
        "backend the addresses of mlx.launch's hostfile count instead."
    )
    ports: Ports = Field(
        description="Ports [inference, communication, health]: the OpenAI API of this node, its "
        "frame link from the previous rank, its health and metrics."
    )
    memory: Auto[Size] = Field(
        default=None, description='Memory of the node, e.g. "16GB"; auto: what the machine reports.'
    )
    memory_share: Share = Field(
        default=0.75, description="Share (0..1] of the memory that weights and KV caches may take."
    )
    speed: Factor = Field(
        default=1.0,
        description="Speed relative to the other nodes: 2.0 computes a layer in half the time.",
    )

    @property
    def address(self) -> str:
        """The host, with all names of the loopback interface made one."""
        host = self.host.lower().rstrip(".")
        return "localhost" if host in LOOPBACK else host


def is_wildcard(host: str) -> bool:
    """Whether `host` means all addresses of a machine (0.0.0.0, ::), so that nobody can connect to it."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_unspecified
    except ValueError:  # a name
        return False


def node_by_rule(node_id: int, taken: Collection[int]) -> NodeConfig:
    """A node that no file names: `node3`, on the first block of ports without a port of `taken`."""
    used_blocks = {port // BLOCK for port in taken}
    for first in range(FIRST_BLOCK, 65536 - BLOCK, BLOCK):
        if first // BLOCK not in used_blocks:
            ports = Ports(first, first + 1, first + 2)
            return NodeConfig(name=f"node{node_id}", node_id=node_id, host="127.0.0.1", ports=ports)
    raise ConfigError(
        f"No block of {BLOCK} ports is left for node{node_id}: name it in nodes.yaml."
    )
