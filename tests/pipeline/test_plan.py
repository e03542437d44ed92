from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import combinations, pairwise
from typing import Any

import mlx.core as mx
import pytest
from hypothesis import given, reject
from hypothesis import strategies as st

from pipeline.plan import (
    LayerRange,
    ModelCosts,
    NodeResources,
    Plan,
    PlanError,
    SharedParameters,
    plan,
)
from pipeline.plan.resources import CPU_CHUNK, prefill_chunk, this_node

THREE = [NodeResources("a"), NodeResources("b"), NodeResources("c")]


def sizes(result: Plan) -> list[int]:
    return [len(layers) for layers in result.ranges]


def ranges(*bounds: int) -> list[LayerRange]:
    return [LayerRange(start, end) for start, end in pairwise(bounds)]


def test_equal_layers_over_equal_nodes_favour_earlier_nodes() -> None:
    assert sizes(plan(ModelCosts((100,) * 28), THREE)) == [10, 9, 9]


def test_a_heavy_head_moves_layers_away_from_the_last_node() -> None:
    assert sizes(plan(ModelCosts((100,) * 28, last_bytes=400), THREE)) == [11, 11, 6]


def test_an_embedding_takes_memory_but_no_time() -> None:
    costs = ModelCosts((100,) * 28, first_bytes=400)
    assert sizes(plan(costs, THREE)) == [10, 9, 9]
    tight = [NodeResources("a", memory_bytes=1000), *THREE[1:]]
    assert sizes(plan(costs, tight)) == [6, 11, 11]


def test_a_faster_node_gets_more_layers() -> None:
    nodes = [NodeResources("a"), NodeResources("b"), NodeResources("c", speed=2.0)]
    assert sizes(plan(ModelCosts((100,) * 28), nodes)) == [7, 7, 14]


@pytest.mark.parametrize(
    ("layers", "nodes", "sizes_by_share"),
    [
        (30, 2, {0.0: [19, 11], 0.25: [18, 12], 0.5: [17, 13], 0.75: [16, 14], 1.0: [15, 15]}),
        (30, 3, {0.0: [13, 12, 5], 0.5: [12, 12, 6], 1.0: [10, 10, 10]}),
        # All but the last would have 9 layers or, one each, 8: not worth twice the time of a decode step.
        (64, 8, {0.0: [9] * 7 + [1], 0.5: [9] * 7 + [1], 1.0: [8] * 8}),
    ],
)
def test_the_more_prefill_there_is_the_less_the_head_counts(
    layers: int, nodes: int, sizes_by_share: dict[float, list[int]]
) -> None:
    costs = ModelCosts((100,) * layers, last_bytes=798)
    equal = [NodeResources(f"n{rank}") for rank in range(nodes)]
    found = {share: sizes(plan(costs, equal, prefill_share=share)) for share in sizes_by_share}
    assert found == sizes_by_share


def test_layers_that_differ_a_little_do_not_make_decode_steps_much_slower() -> None:
    """The slowest mix would be a bit faster if the last node took layers from one that has larger ones."""
    layers = tuple(100 + layer % 2 for layer in range(64))
    eight = [NodeResources(f"n{rank}") for rank in range(8)]
    result = plan(ModelCosts(layers, last_bytes=800), eight, prefill_share=0.25)
    assert sizes(result)[-1] == 1


def test_a_plan_says_how_decode_and_prefill_are_divided() -> None:
    costs = ModelCosts((100,) * 4, last_bytes=100)
    nodes = [NodeResources("a"), NodeResources("b", speed=2.0)]
    result = plan(costs, nodes, ranges(0, 2, 4))
    assert [stage.decode_part for stage in result.stages] == [200 / 350, 150 / 350]
    assert [stage.prefill_part for stage in result.stages] == [200 / 300, 100 / 300]


def test_measured_seconds_replace_bytes() -> None:
    costs = ModelCosts((100,) * 4, layer_seconds=(3.0, 1.0, 1.0, 1.0))
    assert sizes(plan(costs, THREE[:2])) == [1, 3]
    costs = replace(costs, last_seconds=2.0)
    assert sizes(plan(costs, THREE[:2])) == [2, 2]
    assert sizes(plan(costs, THREE[:2], prefill_share=1.0)) == [1, 3]


def test_caches_count_for_memory() -> None:
    costs = ModelCosts((100,) * 4, kv_bytes_per_token=(1, 1, 1, 1))
    nodes = [NodeResources("a", memory_bytes=250), NodeResources("b")]
    assert sizes(plan(costs, nodes, reserve_tokens=0)) == [2, 2]
    assert sizes(plan(costs, nodes, reserve_tokens=30)) == [1, 3]
    with pytest.raises(PlanError, match="caches for 1000 tokens"):
        plan(costs, nodes, reserve_tokens=1000)


def test_a_tied_embedding_is_held_at_both_ends_but_once_by_one_node() -> None:
    tied = SharedParameters(frozenset(), first=True, last=True, size=50)
    costs = ModelCosts((10,) * 3, shared=(tied,), last_work=50)
    assert costs.total_bytes == 80
    assert [stage.parameter_bytes for stage in plan(costs, THREE).stages] == [60, 10, 60]


def test_parameters_shared_by_layers_are_held_by_each_stage_that_uses_them() -> None:
    block = SharedParameters(frozenset({1, 2}), first=False, last=False, size=7)
    costs = ModelCosts((10,) * 4, shared=(block,))
    assert [costs.parameter_bytes(r) for r in ranges(0, 1, 2, 4)] == [10, 17, 27]


def test_more_nodes_than_layers_are_refused() -> None:
    with pytest.raises(PlanError, match="3 nodes are more than the 2 layers"):
        plan(ModelCosts((100, 100)), THREE)


def test_a_model_that_is_too_large_names_both_sides() -> None:
    nodes = [NodeResources("a", 10**9), NodeResources("b", 2 * 10**9)]
    with pytest.raises(PlanError, match=r"needs 4\.00 GB .*a 1\.00 GB, b 2\.00 GB"):
        plan(ModelCosts((10**9,) * 4), nodes)


def test_explicit_ranges_are_obeyed() -> None:
    result = plan(ModelCosts((100,) * 28), THREE, ranges(0, 3, 27, 28))
    assert sizes(result) == [3, 24, 1]
    assert [stage.node for stage in result.stages] == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("explicit", "message"),
    [
        (ranges(0, 3, 28), "given for 2 nodes, but there are 3"),
        (ranges(1, 3, 5, 28), "1-2 of a must begin with layer 0"),
        (
            [LayerRange(0, 3), LayerRange(4, 9), LayerRange(9, 28)],
            "4-8 of b must begin with layer 3",
        ),
        (
            [LayerRange(0, 3), LayerRange(2, 9), LayerRange(9, 28)],
            "2-8 of b must begin with layer 3",
        ),
        (ranges(0, 3, 3, 28), "b is given no layer"),
        (ranges(0, 3, 5, 27), "end with 26, but the last layer of the model is 27"),
        (ranges(0, 3, 5, 29), "end with 28, but the last layer of the model is 27"),
    ],
)
def test_explicit_ranges_are_validated(explicit: list[LayerRange], message: str) -> None:
    with pytest.raises(PlanError, match=message):
        plan(ModelCosts((100,) * 28), THREE, explicit)


def test_explicit_ranges_must_fit_into_memory() -> None:
    nodes = [*THREE[:2], NodeResources("c", memory_bytes=10**9)]
    with pytest.raises(PlanError, match=r"Layers 2-3 need 2\.00 GB on c .*which has 1\.00 GB"):
        plan(ModelCosts((10**9,) * 4), nodes, ranges(0, 1, 2, 4))


def test_equal_names_are_refused() -> None:
    with pytest.raises(PlanError, match="same name"):
        plan(ModelCosts((1, 1)), [NodeResources("a"), NodeResources("a")])


def test_a_prefill_step_is_as_configured_or_as_the_device_likes_it() -> None:
    before = mx.default_device()
    mx.set_default_device(mx.cpu)
    try:
        assert prefill_chunk(7) == 7
        assert prefill_chunk(None) == CPU_CHUNK
    finally:
        mx.set_default_device(before)


def test_this_node_takes_its_share_of_the_configured_memory() -> None:
    assert this_node(0.75, memory=16 * 10**9) == 12 * 10**9
    assert 0 < this_node(0.5) < this_node(1.0)


# ---- against brute force

# Whole numbers, and shares and speeds that are sums of powers of two: nothing is rounded.
bytes_ = st.integers(0, 20)
seconds = st.integers(1, 20).map(float)
shares = st.integers(0, 8).map(lambda eighths: eighths / 8)


@st.composite
def model_costs(draw: st.DrawFn) -> ModelCosts:
    n = draw(st.integers(1, 7))
    kv = st.one_of(st.none(), st.lists(bytes_, min_size=n, max_size=n).map(tuple))
    return ModelCosts(
        layer_bytes=tuple(draw(st.lists(st.integers(1, 20), min_size=n, max_size=n))),
        first_bytes=draw(bytes_),
        last_bytes=draw(bytes_),
        shared=tuple(
            SharedParameters(
                frozenset(draw(st.sets(st.integers(0, n - 1)))),
                draw(st.booleans()),
                draw(st.booleans()),
                size,
            )
            for size in draw(st.lists(bytes_, max_size=2))
        ),
        last_work=draw(st.one_of(st.none(), bytes_)),
        kv_bytes_per_token=draw(kv),
        layer_seconds=draw(
            st.one_of(st.none(), st.lists(seconds, min_size=n, max_size=n).map(tuple))
        ),
        last_seconds=draw(seconds),
    )


node_lists = st.lists(
    st.tuples(st.one_of(st.none(), st.integers(1, 150)), st.sampled_from([0.5, 1.0, 2.0])),
    min_size=1,
    max_size=4,
).map(lambda pairs: [NodeResources(f"n{i}", m, s) for i, (m, s) in enumerate(pairs)])

RESERVE = 2

# Where prefill and decode ask for different plans, and memory does not decide.
heavy_heads = st.builds(
    lambda layers, head: ModelCosts(tuple(layers), last_bytes=head),
    st.lists(st.sampled_from([10, 11]), min_size=4, max_size=12),
    st.integers(10, 60),
)
equal_nodes = st.integers(2, 4).map(lambda n: [NodeResources(f"n{i}") for i in range(n)])
cases = st.one_of(st.tuples(model_costs(), node_lists), st.tuples(heavy_heads, equal_nodes))
Case = tuple[ModelCosts, list[NodeResources]]


def all_splits(num_layers: int, parts: int) -> Iterator[list[LayerRange]]:
    for cuts in combinations(range(1, num_layers), parts - 1):
        yield ranges(0, *cuts, num_layers)


def fits(costs: ModelCosts, nodes: list[NodeResources], split: list[LayerRange]) -> bool:
    return all(
        node.memory_bytes is None
        or costs.parameter_bytes(layers) + costs.kv_bytes(layers, RESERVE) <= node.memory_bytes
        for node, layers in zip(nodes, split, strict=True)
    )


Quality = Callable[[ModelCosts, list[NodeResources], list[LayerRange], float], Any]


def stage_times(
    costs: ModelCosts, nodes: list[NodeResources], split: list[LayerRange]
) -> tuple[list[float], list[float]]:
    """Of prefill and of a decode step on each stage, from the definition."""
    layer_costs = costs.layer_seconds or costs.layer_bytes
    head = costs.last_bytes if costs.last_work is None else costs.last_work
    if costs.layer_seconds:
        head = costs.last_seconds
    work = [float(sum(layer_costs[layers.start : layers.end])) for layers in split]
    with_head = [*work[:-1], work[-1] + head]
    speeds = [node.speed for node in nodes]
    return (
        [time / speed for time, speed in zip(work, speeds, strict=True)],
        [time / speed for time, speed in zip(with_head, speeds, strict=True)],
    )


def quality(
    costs: ModelCosts, nodes: list[NodeResources], split: list[LayerRange], share: float
) -> tuple[float, list[float], list[int]]:
    """The mix overlapped and apart; its stages from the slowest on; sizes: smaller is better."""
    prefill, decode = stage_times(costs, nodes, split)
    mix = [share * p + (1 - share) * d for p, d in zip(prefill, decode, strict=True)]
    apart = share * max(prefill) + (1 - share) * max(decode)
    return max(mix) + apart, sorted(mix, reverse=True), [-len(layers) for layers in split]


def quality_of_one_kind(
    costs: ModelCosts, nodes: list[NodeResources], split: list[LayerRange], share: float
) -> tuple[list[float], list[int]]:
    """For shares of 0 and 1: the stages of that kind from the slowest on, then sizes."""
    prefill, decode = stage_times(costs, nodes, split)
    times = prefill if share else decode
    return sorted(times, reverse=True), [-len(layers) for layers in split]


def check_best(
    costs: ModelCosts, nodes: list[NodeResources], share: float, quality: Quality
) -> None:
    feasible = [s for s in all_splits(costs.num_layers, len(nodes)) if fits(costs, nodes, s)]
    if not feasible:
        with pytest.raises(PlanError):
            plan(costs, nodes, prefill_share=share, reserve_tokens=RESERVE)
        return
    found = list(plan(costs, nodes, prefill_share=share, reserve_tokens=RESERVE).ranges)
    assert found == min(feasible, key=lambda split: quality(costs, nodes, split, share))


@given(case=cases, share=shares)
def test_the_plan_is_the_best_of_all_that_fit(case: Case, share: float) -> None:
    check_best(*case, share, quality)


@given(case=cases, share=st.sampled_from([0.0, 1.0]))
def test_one_kind_of_work_alone_has_no_slower_stage_than_needed(case: Case, share: float) -> None:
    check_best(*case, share, quality_of_one_kind)


@given(case=cases, two=st.tuples(shares, shares).map(sorted))
def test_with_more_prefill_the_last_node_never_gets_fewer_layers(
    case: Case, two: list[float]
) -> None:
    costs, nodes = case
    try:
        less, more = (
            plan(costs, nodes, prefill_share=share, reserve_tokens=RESERVE) for share in two
        )
    except PlanError:
        reject()
    assert sizes(less)[-1] <= sizes(more)[-1]


@given(costs=model_costs())
def test_parameter_bytes_count_what_each_stage_needs(costs: ModelCosts) -> None:
    """From the definition: a shared part is held where one of its places is."""
    n = costs.num_layers
    for start in range(n):
        for end in range(start + 1, n + 1):
            places = {
                *range(start, end),
                *(["first"] if start == 0 else []),
                *(["last"] if end == n else []),
            }
            expected = sum(costs.layer_bytes[start:end])
            expected += costs.first_bytes * ("first" in places) + costs.last_bytes * (
                "last" in places
            )
            for part in costs.shared:
                wanted = {*part.layers, *["first"] * part.first, *["last"] * part.last}
                expected += part.size * bool(wanted & places)
            assert costs.parameter_bytes(LayerRange(start, end)) == expected
