"""How the ranks meet: each shows the others a card, and all draw the same conclusions from the same cards."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import TypeVar

import msgspec
import structlog

from config import Config, NodeConfig, file_of
from pipeline.card import PROJECT, VERSIONED, Card, Introduction, differing_sections
from pipeline.errors import ModelError, PipelineError, PlanError
from pipeline.link import Peer
from pipeline.machine import address_towards
from pipeline.plan import LayerRange, ModelCosts, NodeResources, Plan, plan
from pipeline.ring import Ring, ring_addresses

log = structlog.get_logger()

T = TypeVar("T", Introduction, Card)


class MeetingFailed(PipelineError):
    """Another rank can't take part, or the nodes don't fit together; the message says which and why."""


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


def meet(ring: Ring, config: Config, card: Card) -> Meeting:
    """Exchange cards with all ranks.

    Raises MeetingFailed, with the same sentence on every rank, if one can't take part or they don't fit.
    """
    shown = ring.exchange(msgspec.to_builtins(card))
    # Cards of another version may have other fields, so the versions come before the rest.
    _check_introductions([_read(c, Introduction, rank) for rank, c in enumerate(shown)])
    cards = tuple(_read(c, Card, rank) for rank, c in enumerate(shown))
    _raise_errors([(c.node, c.error) for c in cards])
    _check_settings(cards)
    _check_equal("model files (fingerprint)", [(c.node, c.fingerprint) for c in cards])
    nodes = config.nodes_of(ring.size)
    hosts = _hosts(ring, config, cards, nodes)
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
    made = plan(costs, resources, explicit, prefill_share=config.cluster.prefill_share)
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


def _read(shown: object, kind: type[T], rank: int) -> T:
    try:
        return msgspec.convert(shown, kind)
    except msgspec.ValidationError as error:
        raise MeetingFailed(
            f"the card of rank {rank} can't be read ({error}); "
            f"install the same version of {PROJECT} on all nodes."
        ) from error


def _check_introductions(ranks: Sequence[Introduction]) -> None:
    for package in VERSIONED:
        found = [(r.node, r.versions.get(package, "an unknown version")) for r in ranks]
        _check_equal(package, found, "; install the same version on all nodes")
    protocols = [(r.node, f"version {r.protocol}") for r in ranks]
    _check_equal("protocol", protocols, f"; install the same {PROJECT} on all nodes")


def _check_equal(what: str, values: Sequence[tuple[str, str]], advice: str = "") -> None:
    """`values`: what each node has."""
    first, expected = values[0]
    for node, value in values:
        if value != expected:
            raise MeetingFailed(
                f"the nodes differ in {what}: {first} has {expected}, {node} {value}{advice}."
            )


def _check_settings(cards: Sequence[Card]) -> None:
    first = cards[0]
    differing = {card.node: differing_sections(first.settings, card.settings) for card in cards}
    others = [node for node, sections in differing.items() if sections]
    if others:
        places = [f"{s} (config/{file_of(s)})" for s in sorted(set(chain(*differing.values())))]
        raise MeetingFailed(
            f"{first.node} and {', '.join(others)} are configured differently in {', '.join(places)};"
            " give all nodes the same files."
        )


def _hosts(
    ring: Ring, config: Config, cards: Sequence[Card], nodes: Sequence[NodeConfig]
) -> tuple[str, ...]:
    """From the ring's hostfile; without one (MPI) loopback on one machine, else what each rank says itself."""
    addresses = ring_addresses(len(cards))
    if addresses is not None:
        return tuple(addresses)
    if len(cards) == 1 and config.launcher.supervised:
        return (nodes[0].host,)  # no ring, but a launcher that may be on another machine
    if len({card.machine for card in cards}) == 1:
        return ("127.0.0.1",) * len(cards)
    hosts = [
        str(answer["host"]) for answer in ring.exchange({"host": _own_host(config, nodes, ring)})
    ]
    if "" in hosts:
        raise MeetingFailed(
            f"{nodes[hosts.index('')].name} runs on another machine, and nothing says how to reach it: "
            "name it in config/nodes.yaml, or set coordinator.host to the address of rank 0."
        )
    return tuple(hosts)


def _own_host(config: Config, nodes: Sequence[NodeConfig], ring: Ring) -> str:
    """As configured; else the address by which this machine reaches the coordinator; "" if none is known."""
    node, first = nodes[ring.rank], nodes[0]
    if _is_placed(config, node):
        return node.host
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
