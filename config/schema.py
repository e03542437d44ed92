"""The whole configuration as one immutable object.  Units and meaning stand in the descriptions."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import Annotated, Literal, TypeVar

from pydantic import AfterValidator, Field, model_validator

from config.access import AccessConfig
from config.errors import ConfigError, InvalidSetting
from config.gateway import ApiGatewayConfig
from config.keepalive import KeepAlive
from config.keys import Path, closest, format_key
from config.launcher import LauncherConfig
from config.models import LayerRange, ModelConfig, Shard, is_source, unlisted_model
from config.nodes import NodeConfig, is_wildcard, node_by_rule
from config.observe import ObserveConfig
from config.section import DYNAMIC, Section
from config.tls import TlsConfig
from config.values import Auto, Count, Flag, Index, Moment, Name, Part, Port, Seconds, Share, Text

Named = TypeVar("Named", NodeConfig, ModelConfig)


def _name_entries(entries: Mapping[str, Named]) -> Mapping[str, Named]:
    """Tell every entry its key."""
    for key, entry in entries.items():
        if entry.name not in ("", key):
            raise InvalidSetting((key, "name"), f"the name is the key of the entry, {key}")
    return {key: entry.model_copy(update={"name": key}) for key, entry in entries.items()}


class ClusterConfig(Section):
    name: Text = Field(
        default="mlx-distributed-cluster",
        description="Name of the cluster, for people and for metrics.",
    )
    ranks: tuple[Name, ...] = Field(
        default=(), description="Node names in rank order, first layers first; empty: by node_id."
    )
    prefill_share: Part = Field(
        default=0.5,
        description="Share [0..1] of prompts (prefill) in the time that layers compute, for which planned "
        "stages are balanced; the head of the last stage computes for output (decode) only. 0: decode alone.",
    )


class CoordinatorConfig(Section):
    host: Auto[Text] = Field(
        default=None,
        description="Address the coordinator listens on; auto: the one by which nodes reach rank 0.",
    )
    port: Port = Field(
        default=8400, description="gRPC port of the coordinator, on the node of rank 0."
    )
    election_strategy: Literal["health_based", "load_based", "round_robin", "manual"] = Field(
        default="health_based",
        description="How the launcher chooses the node of rank 0: the one with the fewest failures, the "
        "least load, each in turn, or the one that is named; equal ones in the order of the ranks.",
    )
    leader: Auto[Name] = Field(
        default=None,
        description="Node of rank 0 with election_strategy manual, as long as it is there; auto: the first.",
    )
    rotation_interval: Seconds = Field(
        default=3600.0,
        description="Seconds that a node leads with election_strategy round_robin, at least.",
    )
    health_check_interval: Seconds = Field(
        default=1.0,
        description="Seconds between two heartbeats of a node.",
        json_schema_extra=DYNAMIC,
    )
    failure_threshold: Count = Field(
        default=3,
        description="Heartbeats in a row that may be missing before a node counts as dead.",
        json_schema_extra=DYNAMIC,
    )

    def reached_at(self, leader: str) -> str:
        """Where the other ranks reach it: `host` if that is one address, else that of rank 0, `leader`."""
        return leader if self.host is None or is_wildcard(self.host) else self.host


class SchedulerConfig(Section):
    prefill_chunk_tokens: Auto[Count] = Field(
        default=None,
        description="Prompt tokens of one prefill step; auto: the size that is measured to be best, "
        "within what suits the device.",
        json_schema_extra=DYNAMIC,
    )
    max_batch_size: Count = Field(
        default=32, description="Sequences decoded together in one step.", json_schema_extra=DYNAMIC
    )
    groups: Auto[Count] = Field(
        default=None,
        description="Micro-batch groups in flight; auto: as the measured step times suggest.",
    )
    inter_token_bound: Seconds = Field(
        default=1.0,
        description="Seconds between two tokens of a running stream that the prefill of others should not "
        "exceed: prefill steps are made smaller as needed, down to 8 tokens, and no more of them go before a "
        "decode step than fit in.",
        json_schema_extra=DYNAMIC,
    )
    kv_memory_share: Share = Field(
        default=0.8,
        description="Share (0..1] that KV caches may take of the node's usable memory left by weights.",
    )
    prefix_cache_tokens: Auto[Index] = Field(
        default=None,
        description="Tokens of finished sequences whose caches are kept for later prompts; "
        "auto: half of the tokens that fit; 0: no prefix cache.",
    )


class NetworkConfig(Section):
    connect_timeout: Seconds = Field(
        default=30.0, description="Seconds until all ranks must have found each other at start-up."
    )
    step_timeout: Seconds = Field(
        default=120.0,
        description="Seconds one step may take on one stage before the ring counts as hung.",
    )
    activation_format: Literal["native", "float16", "bfloat16", "int8"] = Field(
        default="native",
        description="How hidden states travel between stages: native, as the model computes them; "
        "float16, bfloat16 or int8 (a scale for every 64 values), smaller and less exact, for slow links.",
    )
    early_receive: Flag = Field(
        default=False,
        description="Begin a step when its input is announced instead of when it is there: saves time per "
        "hop where posting work to a GPU takes long, but a core spins while the stage before computes. "
        "Refused on CUDA; on Metal not tried yet.",
    )
    busy_wait: Moment = Field(
        default=0.005,
        description="Seconds for which a rank that computes on a GPU waits awake for its neighbour before it "
        "sleeps, as long as waits are that short: saves the wake-up, and uses a core meanwhile; 0: never.",
    )
    keepalive_interval: Seconds = Field(
        default=5.0,
        description="Seconds between two TCP keep-alive probes on an idle connection between nodes.",
    )
    keepalive_probes: Count = Field(
        default=3,
        description="Unanswered keep-alive probes in a row after which such a connection is closed.",
    )
    rpc_timeout: Seconds = Field(default=5.0, description="Deadline of one gRPC call in seconds.")
    retry_initial: Seconds = Field(
        default=0.2,
        description="Seconds before the first retry of a failed call; doubles each time.",
    )
    retry_max: Seconds = Field(
        default=5.0, description="Longest wait in seconds between two retries."
    )

    @property
    def keepalive(self) -> KeepAlive:
        """What the two settings of keep-alive probes say."""
        return KeepAlive(self.keepalive_interval, self.keepalive_probes)

    @model_validator(mode="after")
    def _check_retries(self) -> NetworkConfig:
        if self.retry_max < self.retry_initial:
            reason = f"should not be less than retry_initial, {self.retry_initial}"
            raise InvalidSetting(("retry_max",), reason)
        return self


class TracingConfig(Section):
    folder: Auto[Text] = Field(
        default=None,
        description="Folder into which each rank writes a timeline of its latest steps when it ends, "
        "for scripts/timeline.py; auto: none is recorded.",
    )


class Config(Section):
    cluster: ClusterConfig = Field(default=ClusterConfig(), description="The cluster as a whole.")
    coordinator: CoordinatorConfig = Field(
        default=CoordinatorConfig(), description="The coordinator."
    )
    api_gateway: ApiGatewayConfig = Field(default=ApiGatewayConfig(), description="The OpenAI API.")
    scheduler: SchedulerConfig = Field(
        default=SchedulerConfig(), description="Batching and memory."
    )
    network: NetworkConfig = Field(
        default=NetworkConfig(), description="Links, deadlines and retries."
    )
    tracing: TracingConfig = Field(default=TracingConfig(), description="Timelines.")
    access: AccessConfig = Field(default=AccessConfig(), description="Keys, roles and limits.")
    observe: ObserveConfig = Field(
        default=ObserveConfig(), description="Logs, traces, resources and alerts."
    )
    launcher: LauncherConfig = Field(
        default=LauncherConfig(), description="The launcher, which starts and watches the ranks."
    )
    tls: TlsConfig = Field(default=TlsConfig(), description="Certificates and what they protect.")
    nodes: Annotated[Mapping[Name, NodeConfig], AfterValidator(_name_entries)] = Field(
        default={}, description="The named nodes; ranks beyond them get names and ports by rule."
    )
    default_model: Text = Field(
        default="demo",
        description="Model to serve: a name of models.yaml, a folder, a hub id, or demo.",
    )
    models: Annotated[Mapping[Name, ModelConfig], AfterValidator(_name_entries)] = Field(
        default={}, description="The models that can be served by name."
    )

    @model_validator(mode="after")
    def _check(self) -> Config:
        _check_ranks(self)
        _check_node_ids(self.nodes)
        _check_ports(self)
        _check_models(self)
        return self

    @property
    def model(self) -> ModelConfig:
        """The model to serve."""
        listed = self.models.get(self.default_model)
        return listed or unlisted_model(self.default_model, self.models)

    def node_of_rank(self, rank: int, size: int) -> NodeConfig:
        """The node that runs `rank` of `size`: cluster.ranks first, other named nodes, then by rule."""
        if not 0 <= rank < size:
            raise IndexError(f"rank {rank} of {size}")
        return self.nodes_of(size)[rank]

    def nodes_of(self, size: int) -> tuple[NodeConfig, ...]:
        """The nodes of `size` ranks in rank order.  Raises ConfigError when no ports are left."""
        return tuple(itertools.islice(self._in_rank_order(), size))

    def _in_rank_order(self) -> Iterator[NodeConfig]:
        first = [self.nodes[name] for name in self.cluster.ranks]
        by_id = sorted(self.nodes.values(), key=lambda node: node.node_id)
        named = first + [node for node in by_id if node.name not in self.cluster.ranks]
        yield from named
        taken = {self.api_gateway.port, self.coordinator.port}
        taken.update(port for node in named for port in node.ports)
        ids = {node.node_id for node in named}
        for node_id in itertools.count(len(named)):
            if node_id not in ids and f"node{node_id}" not in self.nodes:
                node = node_by_rule(node_id, taken)
                taken.update(node.ports)
                yield node

    def check_one_host(self, size: int) -> None:
        """Raise ConfigError if two of `size` ranks would listen on one port when sharing a machine."""
        users: dict[int, str] = {}
        for node in self.nodes_of(size):
            for port in node.ports:
                if port in users:
                    raise ConfigError(
                        f"{format_key(('nodes', node.name, 'ports'))}: port {port} is also one of "
                        f"{users[port]}, and both run on this machine."
                    )
                users[port] = node.name

    def shards(self, size: int) -> tuple[Shard, ...] | None:
        """Explicit shards of the served model in rank order, or None when they are to be planned.

        Raises ConfigError when they don't name exactly the nodes of `size` ranks, in rank order.
        """
        if self.model.sharding is None:
            return None
        key = format_key(("models", self.model.name, "sharding"))
        shards = {_node_id(name, self.nodes): s for name, s in self.model.sharding.items()}
        nodes = self.nodes_of(size)
        if set(shards) != {node.node_id for node in nodes}:
            raise ConfigError(
                f"{key} names {', '.join(self.model.sharding)}, but the ranks run on "
                f"{', '.join(node.name for node in nodes)}; name all of them, or set it to auto."
            )
        ordered = tuple(shards[node.node_id] for node in nodes)
        if list(ordered) != sorted(ordered, key=lambda shard: shard.layers):
            raise ConfigError(
                f"{key} is not in the order of the ranks, {', '.join(node.name for node in nodes)}: "
                "layers must rise with the rank."
            )
        return ordered

    def layer_ranges(self, size: int) -> tuple[LayerRange, ...] | None:
        """The ranges of `shards`."""
        shards = self.shards(size)
        return None if shards is None else tuple(shard.layers for shard in shards)


def _check_ranks(config: Config) -> None:
    leader = config.coordinator.leader
    if leader is not None and config.nodes and leader not in config.nodes:
        reason = f"{leader} is {_unknown(leader, config.nodes)}"
        raise InvalidSetting(("coordinator", "leader"), reason)
    seen: set[str] = set()
    for name in config.cluster.ranks:
        if name not in config.nodes:
            raise InvalidSetting(("cluster", "ranks"), f"{name} is {_unknown(name, config.nodes)}")
        if name in seen:
            raise InvalidSetting(("cluster", "ranks"), f"{name} is named twice")
        seen.add(name)


def _check_node_ids(nodes: Mapping[str, NodeConfig]) -> None:
    users: dict[int, str] = {}
    for node in nodes.values():
        other = users.setdefault(node.node_id, node.name)
        if other != node.name:
            raise InvalidSetting(
                ("nodes", node.name, "node_id"), f"{other} has this node_id already"
            )


def _check_ports(config: Config) -> None:
    """Gateway and coordinator move with rank 0, so they must not meet a port of any node."""
    gateway: Path = ("api_gateway", "port")
    coordinator: Path = ("coordinator", "port")
    if config.coordinator.port == config.api_gateway.port:
        raise InvalidSetting(gateway, f"{format_key(coordinator)} has this port already")
    shared = {config.api_gateway.port: gateway, config.coordinator.port: coordinator}
    users: dict[tuple[str, int], Path] = {}
    for node in config.nodes.values():
        path = ("nodes", node.name, "ports")
        for port in node.ports:
            if port in shared:
                # Blamed is the one that --port sets: most often it is the later one.
                raise InvalidSetting(shared[port], f"{format_key(path)} has port {port} already")
            other = users.get((node.address, port))
            if other is not None:
                raise InvalidSetting(path, f"{format_key(other)} has port {port} already")
            users[node.address, port] = path


def _check_models(config: Config) -> None:
    name = config.default_model
    if name not in config.models and not is_source(name):
        reason = _unknown(name, config.models, "model") + f"; for a folder write ./{name}"
        raise InvalidSetting(("default_model",), f"{name} is {reason}")
    for model in config.models.values():
        _check_shard_nodes(model, config.nodes)


def _check_shard_nodes(model: ModelConfig, nodes: Mapping[str, NodeConfig]) -> None:
    users: dict[int, str] = {}
    for key in model.sharding or {}:
        path = ("models", model.name, "sharding", key)
        node_id = _node_id(key, nodes)
        if node_id is None:
            raise InvalidSetting(path, f"{key} is {_unknown(key, nodes)}, nor node_<node_id>")
        other = users.setdefault(node_id, key)
        if other != key:
            raise InvalidSetting(path, f"{key} is the same node as {other}")


def _node_id(key: str, nodes: Mapping[str, NodeConfig]) -> int | None:
    """What a key of `sharding` stands for: a node's name, or node_<node_id>."""
    if key in nodes:
        return nodes[key].node_id
    prefix, _, number = key.partition("node_")
    return int(number) if not prefix and number.isdecimal() else None


def _unknown(name: str, known: Mapping[str, object], kind: str = "node") -> str:
    meant = closest(name, known)
    return f"not a {kind} of {kind}s.yaml" + (f" (did you mean {meant}?)" if meant else "")
