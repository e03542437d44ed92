"""How the ranks meet: each shows the others a card, and all draw the same conclusions from the same cards."""

from __future__ import annotations

import os
import platform
import secrets
import socket
from collections.abc import Sequence
from importlib.metadata import version

import msgspec
import structlog

from config import Config, NodeConfig
from pipeline.errors import ModelError, PipelineError, PlanError
from pipeline.link import Peer
from pipeline.plan import LayerRange, ModelCosts, NodeResources, Plan, plan
from pipeline.ring import Ring, ring_addresses

log = structlog.get_logger()

VERSIONED = ("mlx", "mlx-lm", "mlx-cluster")
"""Packages whose versions must be the same on all nodes."""


class MeetingFailed(PipelineError):
    """Another rank can't take part, or the nodes don't fit together; the message says which and why."""


class Card(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a rank tells all others before anything is planned."""

    epoch: int  # rank 0's counts
    node: str
    machine: str  # equal for ranks on the same machine
    pid: int
    python: str
    versions: dict[str, str]
    memory_bytes: int  # that weights and caches may take, of this machine
    speed: float
    settings: str  # digest of what must be configured alike
    fingerprint: str = ""  # of the model; empty with an error
    error: str = ""  # why this rank can't take part


class Meeting(msgspec.Struct, frozen=True):
    """What all ranks agree on."""

    rank: int
    cards: tuple[Card, ...]
    nodes: tuple[NodeConfig, ...]
    hosts: tuple[str, ...]  # addresses by which the others reach each rank

    @property
    def size(self) -> int:
        """Number of ranks."""
        return len(self.cards)

    @property
    def epoch(self) -> int:
        """Number of this launch."""
        return self.cards[0].epoch

    @property
    def card(self) -> Card:
        """This rank's own card."""
        return self.cards[self.rank]

    @property
    def node(self) -> NodeConfig:
        """This rank's node."""
        return self.nodes[self.rank]

    def memory_bytes(self, rank: int) -> int:
        """What weights and caches of `rank` may take: ranks that share a machine share its memory."""
        card = self.cards[rank]
        if self.nodes[rank].memory is not None:
            return card.memory_bytes
        return card.memory_bytes // sum(other.machine == card.machine for other in self.cards)

    @property
    def host(self) -> str:
        """The address of this rank."""
        return self.hosts[self.rank]

    @property
    def peers(self) -> list[Peer]:
        """Where each rank listens for frames."""
        return [
            Peer(rank, node.name, host, node.ports.communication)
            for rank, (node, host) in enumerate(zip(self.nodes, self.hosts, strict=True))
        ]


def make_card(
    node: NodeConfig, memory_bytes: int, settings: str, fingerprint: str = "", error: str = ""
) -> Card:
    """The card of this process."""
    return Card(
        epoch=secrets.randbits(48),
        node=node.name,
        machine=socket.gethostname(),
        pid=os.getpid(),
        python=platform.python_version(),
        versions={package: version(package) for package in VERSIONED},
        memory_bytes=memory_bytes,
        speed=node.speed,
        settings=settings,
        fingerprint=fingerprint,
        error=error,
    )


def meet(ring: Ring, config: Config, card: Card) -> Meeting:
    """Exchange cards with all ranks.

    Raises MeetingFailed, with the same sentence on every rank, if one can't take part or they don't fit.
    """
    cards = tuple(msgspec.convert(c, Card) for c in ring.exchange(msgspec.to_builtins(card)))
    _raise_errors([(c.node, c.error) for c in cards])
    _check_equal(cards, "settings", [c.settings for c in cards])
    for package in VERSIONED:
        _check_equal(cards, package, [c.versions[package] for c in cards])
    _check_equal(cards, "model files (fingerprint)", [c.fingerprint for c in cards])
    nodes = config.nodes_of(ring.size)
    hosts = _hosts(cards, nodes)
    if len(set(hosts)) < len(hosts):
        config.check_one_host(ring.size)
    return Meeting(ring.rank, cards, nodes, hosts)


def agree(ring: Ring, meeting: Meeting, problem: str) -> None:
    """Wait until every rank has come this far; `problem` says why this one can't go on, or is empty.

    Raises MeetingFailed (ModelError where all have the same problem) on every rank with the same sentence.
    """
    outcomes = ring.exchange({"error": problem})
    _raise_errors([(c.node, o["error"]) for c, o in zip(meeting.cards, outcomes, strict=True)])


def place_layers(config: Config, meeting: Meeting, costs: ModelCosts) -> Plan:
    """The layers of each rank, as config/models.yaml says, else planned from the cards: equal on every rank.

    Raises PlanError, or ConfigError for ranges that don't name the nodes at hand.
    """
    model = config.model
    if model.total_layers is not None and model.total_layers != costs.num_layers:
        raise PlanError(
            f"models.{model.name}.total_layers is {model.total_layers},"
            f" but the model has {costs.num_layers} layers."
        )
    shards = config.shards(meeting.size)
    explicit = [LayerRange(s.layers.first, s.layers.last + 1) for s in shards or ()] or None
    resources = [
        NodeResources(card.node, meeting.memory_bytes(rank), card.speed)
        for rank, card in enumerate(meeting.cards)
    ]
    made = plan(costs, resources, explicit)
    for shard, stage in zip(shards or (), made.stages, strict=False):
        if shard.estimated_memory is not None and stage.parameter_bytes > shard.estimated_memory:
            log.warning(
                "a shard is larger than its estimated_memory",
                shard=stage.node,
                estimated=int(shard.estimated_memory),
                bytes=stage.parameter_bytes,
            )
    return made


def _raise_errors(errors: Sequence[tuple[str, str]]) -> None:
    """One sentence for all: without names where every node says the same."""
    reasons = {error for _, error in errors if error}
    if not reasons:
        return
    if len(reasons) == 1 and all(error for _, error in errors):
        raise ModelError(reasons.pop())
    node, reason = next((node, error) for node, error in errors if error)
    raise MeetingFailed(f"{node}: {reason}")


def _check_equal(cards: Sequence[Card], what: str, values: Sequence[str]) -> None:
    for card, value in zip(cards, values, strict=True):
        if value != values[0]:
            raise MeetingFailed(
                f"the nodes differ in {what}: {cards[0].node} has {values[0]}, {card.node} {value}."
            )


def _hosts(cards: Sequence[Card], nodes: Sequence[NodeConfig]) -> tuple[str, ...]:
    """The ring's hostfile counts; without one (MPI), loopback if all share a machine, else nodes.yaml."""
    addresses = ring_addresses(len(cards))
    if addresses is not None:
        return tuple(addresses)
    if len({card.machine for card in cards}) == 1:
        return ("127.0.0.1",) * len(cards)
    return tuple(node.host for node in nodes)
