"""Contiguous layer ranges for nodes in a fixed order: exact, deterministic, pure.

What is balanced is a mix of prefill and decode.  Only decode steps compute the head, which with a large
vocabulary takes as long as many layers.  Balanced for these alone, the last stage gets so few layers that it
has little to do in prefill; balanced for prefill, it holds up every decode step.

Of the time that layers compute, let w (`prefill_share`) be for prefill.  A stage whose layers take l, and h
more for the head, then takes w * l for prefill and (1 - w) * (l + h) for decode steps.  Where steps of both
kinds are under way, a stage that has less of one kind works off the other meanwhile, and the stage of the
greatest sum is the slowest:

    overlapped = max(w * l + (1 - w) * (l + h))

Where there is one kind at a time, a single prompt or streams without new ones, each kind has a slowest stage:

    apart = w * max(l) + (1 - w) * max(l + h)

A real load lies between, and the plan is the best one for the mean of both.  With two stages this is the one
of the least `overlapped`.  With more, all others share the layers that the last stage could take back, so
that prefill gains little and decode steps lose much: where w is below 1 - 2 / stages and nodes are equal, the
plan is the one for decode steps alone, as far as whole layers allow.

P prompt tokens and O output tokens make w = P * p / (P * p + O * d), where p and d are what a layer takes for
one of each: p of a chunk of many, and d of a decode step of B sequences a B-th.  d was 2.0, 2.9 and 4.9 times
p with 16, 8 and 4 sequences (demo model on a CPU, see scripts/MEASURED.md); with 4, w is P / (P + 4 * O).
The default of 0.5 is for prompts that are four times as long as outputs: between chats (as long or shorter,
with the turns before in the prefix cache) and documents, code and tools (ten times as long and more).
"""

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
    prefill_share: float = 0.0,
    reserve_tokens: int = RESERVE_TOKENS,
) -> Plan:
    """Give each of `nodes` (in rank order) a range of layers.

    Minimises what a mix takes in which layers compute for prefill for `prefill_share` [0..1] of their time, as
    the text of this module has it: with 0 the slowest stage of a decode step, with 1 that of a chunk.  Among
    equals the times of the stages are compared, from the slowest on, then earlier nodes get more layers.  All
    under the memory limits.  `explicit`, one range for each node, is checked and obeyed instead.

    Raises PlanError if there is no such plan, with the bytes needed and available.
    """
    _check_nodes(costs, nodes)
    fit = _Fit(costs, reserve_tokens, prefill_share)
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
    """Whether a stage fits into a node, and how long it takes there for the mix."""

    def __init__(self, costs: ModelCosts, reserve_tokens: int, prefill_share: float) -> None:
        self.costs, self.reserve_tokens = costs, reserve_tokens
        self.decode_share = 1 - prefill_share

    def bytes_needed(self, layers: LayerRange) -> int:
        return self.costs.parameter_bytes(layers) + self.costs.kv_bytes(layers, self.reserve_tokens)

    def fits(self, node: NodeResources, layers: LayerRange) -> bool:
        return node.memory_bytes is None or self.bytes_needed(layers) <= node.memory_bytes

    def seconds(self, node: NodeResources, layers: LayerRange) -> float:
        head = self.decode_share * self.costs.head_time(layers)
        return (self.costs.prefill_time(layers) + head) / node.speed

    def total(self, others: float, node: NodeResources, layers: LayerRange) -> float:
        """What all stages take, `layers` being the last one and `others` the slowest time before it."""
        overlapped = max(others, self.seconds(node, layers))
        prefill = max(others, self.costs.prefill_time(layers) / node.speed)
        decode = max(others, self.costs.decode_time(layers) / node.speed)
        apart = prefill + self.decode_share * (decode - prefill)
        return overlapped + apart

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
    """Dynamic programming over (nodes used, layers placed), for all stages but the last.

    Adding the same stage to two partial plans keeps their order, so the best plan has the best
    prefix.  A first run over the slowest time alone says where the last stage may begin and bounds
    the second, which compares all times.
    """
    last, num_layers = nodes[-1], fit.costs.num_layers
    slowest = _best_starts(fit, nodes)
    if not slowest:
        raise _no_room(fit, nodes)
    bound = max(slowest.values())
    best: dict[int, _Partial] = {0: _Partial((), ())}
    for rank, node in enumerate(nodes[:-1]):
        reached: dict[int, _Partial] = {}
        for start, partial in best.items():
            for end in _ends(start, rank, len(nodes), num_layers):
                layers = LayerRange(start, end)
                time = fit.seconds(node, layers)
                if time > bound or not fit.fits(node, layers):
                    continue
                candidate = partial.extended(time, len(layers))
                if end not in reached or candidate < reached[end]:
                    reached[end] = candidate
        best = reached
    rest = {start: LayerRange(start, num_layers) for start in slowest}
    whole = min(
        best[start].extended(fit.seconds(last, layers), len(layers))
        for start, layers in rest.items()
    )
    ranges, start = [], 0
    for size in whole.negative_sizes:
        ranges.append(LayerRange(start, start - size))
        start -= size
    return ranges


def _best_starts(fit: _Fit, nodes: Sequence[NodeResources]) -> dict[int, float]:
    """Where the last stage begins in the best plans -> the least slowest time before it; {} if nothing fits."""
    last, num_layers = nodes[-1], fit.costs.num_layers
    slowest, totals = _slowest_before_the_last(fit, nodes), {}
    for start, others in slowest.items():
        layers = LayerRange(start, num_layers)
        if fit.fits(last, layers):
            totals[start] = fit.total(others, last, layers)
    least = min(totals.values(), default=0.0)
    return {start: slowest[start] for start, total in totals.items() if total == least}


def _slowest_before_the_last(fit: _Fit, nodes: Sequence[NodeResources]) -> dict[int, float]:
    """Where the last stage may begin -> the slowest time before it in the best plan for these layers."""
    best: dict[int, float] = {0: 0.0}
    for rank, node in enumerate(nodes[:-1]):
        reached: dict[int, float] = {}
        for start, slowest in best.items():
            for end in _ends(start, rank, len(nodes), fit.costs.num_layers):
                layers = LayerRange(start, end)
                if fit.fits(node, layers):
                    time = max(slowest, fit.seconds(node, layers))
                    reached[end] = min(time, reached.get(end, time))
        best = reached
    return best


def _ends(start: int, rank: int, num_nodes: int, num_layers: int) -> range:
    """Where the stage of `rank`, which is not the last one, may end: each later node needs a layer."""
    return range(start + 1, num_layers - (num_nodes - rank - 1) + 1)


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
    stages = list(zip(nodes, ranges, strict=True))
    decode = _parts([costs.decode_time(layers) / node.speed for node, layers in stages])
    prefill = _parts([costs.prefill_time(layers) / node.speed for node, layers in stages])
    known = costs.kv_bytes_per_token is not None
    return Plan(
        tuple(
            StagePlan(
                node=node.name,
                layers=layers,
                parameter_bytes=costs.parameter_bytes(layers),
                kv_bytes_per_token=costs.kv_bytes(layers, 1) if known else None,
                decode_part=decode[rank],
                prefill_part=prefill[rank],
            )
            for rank, (node, layers) in enumerate(stages)
        )
    )


def _parts(times: Sequence[float]) -> list[float]:
    """Of each in their sum."""
    total = sum(times) or 1.0
    return [time / total for time in times]


def gigabytes(size: int) -> str:
    """Decimal, as memory sizes are configured."""
    return f"{size / 1e9:.2f} GB" if size >= 10**7 else f"{size / 1e6:.3f} MB"


def _names(nodes: Sequence[NodeResources]) -> str:
    return ", ".join(node.name for node in nodes)
