"""Contiguous layer ranges for nodes in a fixed order: exact, deterministic, pure."""

from __future__ import annotations

from bisect import insort
from collections.abc import Sequence
from typing import NamedTuple

from pipeline.errors import PlanError, TooLittleMemory
from pipeline.plan.records import LayerRange, ModelCosts, NodeResources, Plan, StagePlan

RESERVE_TOKENS = 4096  # of all sequences together, for which caches must fit next to the parameters


def plan(
    costs: ModelCosts,
    nodes: Sequence[NodeResources],
    explicit: Sequence[LayerRange] | None = None,
    *,
    reserve_tokens: int = RESERVE_TOKENS,
) -> Plan:
    """Give each of `nodes` (in rank order) a range of layers.

    Minimises the time of the slowest stage, then of the second slowest and so on, under the memory
    limits; among equals, earlier nodes get more layers.  `explicit`, one range for each node, is
    checked and obeyed instead.

    Raises PlanError if there is no such plan, with the bytes needed and available.
    """
    _check_nodes(costs, nodes)
    fit = _Fit(costs, reserve_tokens)
    if explicit is not None:
        _check_explicit(costs, nodes, explicit)
        for node, layers in zip(nodes, explicit, strict=True):
            fit.require(node, layers)
    ranges = _best_ranges(fit, nodes) if explicit is None else explicit
    return _describe(costs, nodes, ranges)


def _check_nodes(costs: ModelCosts, nodes: Sequence[NodeResources]) -> None:
    if not nodes:
        raise PlanError("There are no nodes to place the model on.")
    if len({node.name for node in nodes}) < len(nodes):
        raise PlanError(f"Two nodes have the same name among {_names(nodes)}.")
    if len(nodes) > costs.num_layers:
        raise PlanError(
            f"{len(nodes)} nodes are more than the {costs.num_layers} layers of the model; "
            "use fewer nodes."
        )


class _Fit:
    """Whether a stage fits into a node, and how long it takes there."""

    def __init__(self, costs: ModelCosts, reserve_tokens: int) -> None:
        self.costs, self.reserve_tokens = costs, reserve_tokens

    def bytes_needed(self, layers: LayerRange) -> int:
        return self.costs.parameter_bytes(layers) + self.costs.kv_bytes(layers, self.reserve_tokens)

    def fits(self, node: NodeResources, layers: LayerRange) -> bool:
        return node.memory_bytes is None or self.bytes_needed(layers) <= node.memory_bytes

    def seconds(self, node: NodeResources, layers: LayerRange) -> float:
        return self.costs.time(layers) / node.speed

    def require(self, node: NodeResources, layers: LayerRange) -> None:
        if not self.fits(node, layers):
            raise PlanError(
                f"Layers {layers} need {gigabytes(self.bytes_needed(layers))} on {node.name} "
                f"(with room for {self.reserve_tokens} tokens), "
                f"which has {gigabytes(node.memory_bytes or 0)}."
            )


# ---- explicit


def _check_explicit(
    costs: ModelCosts, nodes: Sequence[NodeResources], ranges: Sequence[LayerRange]
) -> None:
    if len(ranges) != len(nodes):
        raise PlanError(
            f"Layers are given for {len(ranges)} nodes, but there are {len(nodes)}: {_names(nodes)}."
        )
    expected = 0
    for node, layers in zip(nodes, ranges, strict=True):
        if layers.end <= layers.start:
            raise PlanError(f"{node.name} is given no layer; each node needs at least one.")
        if layers.start != expected:
            raise PlanError(
                f"Layers {layers} of {node.name} must begin with layer {expected}: "
                "the nodes take the layers in rank order, without gaps."
            )
        expected = layers.end
    if expected != costs.num_layers:
        raise PlanError(
            f"The given layers end with {expected - 1}, but the last layer of the model is "
            f"{costs.num_layers - 1}."
        )


# ---- best


class _Partial(NamedTuple):
    """A plan for the first nodes.  Compared in this order: smaller is better."""

    times: tuple[float, ...]  # slowest first
    negative_sizes: tuple[int, ...]  # in rank order; more layers on earlier nodes are smaller

    def extended(self, time: float, size: int) -> _Partial:
        ascending = [-t for t in self.times]
        insort(ascending, -time)
        return _Partial(tuple(-t for t in ascending), (*self.negative_sizes, -size))


def _best_ranges(fit: _Fit, nodes: Sequence[NodeResources]) -> list[LayerRange]:
    """Dynamic programming over (nodes used, layers placed).

    Adding the same stage to two partial plans keeps their order, so the best plan has the best
    prefix.  A first run over the slowest time alone bounds the second, which compares all times.
    """
    bound = _smallest_maximum(fit, nodes)
    if bound is None:
        raise _no_room(fit, nodes)
    last, num_layers = len(nodes), fit.costs.num_layers
    best: dict[int, _Partial] = {0: _Partial((), ())}
    for rank, node in enumerate(nodes):
        reached: dict[int, _Partial] = {}
        for start, partial in best.items():
            for end in _ends(start, rank, last, num_layers):
                layers = LayerRange(start, end)
                time = fit.seconds(node, layers)
                if time > bound or not fit.fits(node, layers):
                    continue
                candidate = partial.extended(time, len(layers))
                if end not in reached or candidate < reached[end]:
                    reached[end] = candidate
        best = reached
    ranges, start = [], 0
    for size in best[num_layers].negative_sizes:
        ranges.append(LayerRange(start, start - size))
        start -= size
    return ranges


def _smallest_maximum(fit: _Fit, nodes: Sequence[NodeResources]) -> float | None:
    """Time of the slowest stage in the best plan, None if no plan fits."""
    last, num_layers = len(nodes), fit.costs.num_layers
    best: dict[int, float] = {0: 0.0}
    for rank, node in enumerate(nodes):
        reached: dict[int, float] = {}
        for start, slowest in best.items():
            for end in _ends(start, rank, last, num_layers):
                layers = LayerRange(start, end)
                if fit.fits(node, layers):
                    time = max(slowest, fit.seconds(node, layers))
                    reached[end] = min(time, reached.get(end, time))
        best = reached
    return best.get(num_layers)


def _ends(start: int, rank: int, num_nodes: int, num_layers: int) -> range:
    """Where the stage of `rank` may end: each later node needs a layer, and the last takes the rest."""
    later = num_nodes - rank - 1
    first = start + 1 if later else num_layers
    return range(first, num_layers - later + 1)


def _no_room(fit: _Fit, nodes: Sequence[NodeResources]) -> PlanError:
    whole = LayerRange(0, fit.costs.num_layers)
    offers = ", ".join(
        f"{node.name} {gigabytes(node.memory_bytes)}"
        for node in nodes
        if node.memory_bytes is not None
    )
    needed = fit.bytes_needed(whole)
    if len(nodes) > 1 and whole.end > 1:  # both ends of a tied model hold its embedding
        first, others = LayerRange(0, 1), LayerRange(1, whole.end)
        needed = fit.bytes_needed(first) + fit.bytes_needed(others)
    return TooLittleMemory(
        f"The model needs {gigabytes(needed)} (parameters, and caches for {fit.reserve_tokens} tokens), "
        f"which can't be divided by layers over the memory of the nodes ({offers}); "
        "use more or larger nodes, or a model with fewer bits."
    )


# ---- result


def _describe(
    costs: ModelCosts, nodes: Sequence[NodeResources], ranges: Sequence[LayerRange]
) -> Plan:
    times = [costs.time(layers) / node.speed for node, layers in zip(nodes, ranges, strict=True)]
    total = sum(times) or 1.0
    known = costs.kv_bytes_per_token is not None
    return Plan(
        tuple(
            StagePlan(
                node=node.name,
                layers=layers,
                parameter_bytes=costs.parameter_bytes(layers),
                kv_bytes_per_token=costs.kv_bytes(layers, 1) if known else None,
                share=time / total,
            )
            for node, layers, time in zip(nodes, ranges, times, strict=True)
        )
    )


def gigabytes(size: int) -> str:
    """Decimal, as memory sizes are configured."""
    return f"{size / 1e9:.2f} GB" if size >= 10**7 else f"{size / 1e6:.3f} MB"


def _names(nodes: Sequence[NodeResources]) -> str:
    return ", ".join(node.name for node in nodes)
