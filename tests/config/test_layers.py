from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from config.layers import Leaf, Origin, merge, origin_of, spread, tree

NAMES = st.sampled_from(["a", "b", "c"])
SCALARS = st.integers(0, 9) | st.none() | st.lists(st.integers(0, 9), max_size=2)
TREES = st.dictionaries(
    NAMES, st.recursive(SCALARS, lambda inner: st.dictionaries(NAMES, inner, max_size=3))
)


def leaves(*trees):
    return [
        leaf
        for number, data in enumerate(trees)
        for name, value in data.items()
        for leaf in spread((name,), value, Origin(str(number)))
    ]


def merged_by_hand(base, over):
    """The rule of `merge`, said again by recursion over the nested form."""
    if not isinstance(base, dict) or not isinstance(over, dict) or not over:
        return over
    merged = dict(base)
    for key, value in over.items():
        merged[key] = merged_by_hand(base[key], value) if key in base else value
    return merged


@given(TREES)
def test_a_tree_survives_spreading_and_merging(data):
    assert tree(merge(leaves(data))) == data


@given(st.lists(TREES, min_size=1, max_size=4))
def test_later_sources_win_entry_by_entry(trees):
    expected = {}
    for data in trees:
        expected = merged_by_hand(expected, data) if data else expected
    assert tree(merge(leaves(*trees))) == expected


@given(st.lists(TREES, min_size=1, max_size=4))
def test_every_value_comes_from_the_source_that_its_origin_names(trees):
    for path, leaf in merge(leaves(*trees)).items():
        value = trees[int(leaf.origin.source)]
        for part in path:
            value = value[part]
        assert value == leaf.value


@given(TREES, TREES)
def test_merging_again_changes_nothing(one, two):
    merged = merge(leaves(one, two))
    assert merge([*merged.values(), *merged.values()]) == merged


def test_an_empty_mapping_clears():
    assert tree(merge(leaves({"a": {"b": 1}}, {"a": {}}))) == {"a": {}}


def test_origin_of_a_value_an_item_and_a_section():
    merged = merge(leaves({"a": {"b": [1, 2]}}, {"c": 1}))
    assert origin_of(merged, ("a", "b")) == Origin("0")
    assert origin_of(merged, ("a", "b", "0")) == Origin("0")
    assert origin_of(merged, ("a",)) == Origin("0")
    assert origin_of(merged, ("c",)) == Origin("1")
    assert origin_of(merged, ("d",)) is None


def test_place_names_the_line():
    assert Leaf(("a",), 1, Origin("x.yaml", 3)).origin.place == "x.yaml line 3"
    assert Origin("--set").place == "--set"
