from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.election import Candidate, Strategy, elect, health_score, load_score

A, B, C = Candidate("a"), Candidate("b"), Candidate("c")
STRATEGIES: list[Strategy] = ["health_based", "load_based", "round_robin", "manual"]

candidates = st.lists(
    st.builds(
        Candidate,
        name=st.sampled_from("abcdef"),
        failures=st.integers(0, 5),
        missed_heartbeats=st.floats(0, 9),
        cpu_percent=st.none() | st.floats(0, 100),
        memory_percent=st.none() | st.floats(0, 100),
    ),
    min_size=1,
    unique_by=lambda node: node.name,
)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_equal_nodes_are_taken_in_their_order(strategy: Strategy) -> None:
    assert elect([A, B, C], strategy) == ("a", "b", "c")


def test_who_failed_does_not_lead() -> None:
    assert elect([Candidate("a", failures=1), B, C], "health_based") == ("b", "a", "c")


def test_who_misses_heartbeats_does_not_lead() -> None:
    assert elect([Candidate("a", missed_heartbeats=2.5), B, C], "health_based")[0] == "b"


def test_who_has_no_memory_left_does_not_lead() -> None:
    assert elect([Candidate("a", memory_percent=99.0), B], "health_based")[0] == "b"


def test_the_least_loaded_node_leads() -> None:
    nodes = [Candidate("a", cpu_percent=80.0), Candidate("b", cpu_percent=20.0), C]
    assert elect(nodes, "load_based") == ("b", "a", "c")


def test_a_node_that_fails_does_not_lead_for_being_idle() -> None:
    nodes = [Candidate("a", cpu_percent=80.0), Candidate("b", failures=1, cpu_percent=0.0)]
    assert elect(nodes, "load_based")[0] == "a"


def test_loads_that_differ_by_little_do_not_move_the_leader() -> None:
    nodes = [Candidate("a", cpu_percent=31.0), Candidate("b", cpu_percent=29.0)]
    assert elect(nodes, "load_based")[0] == "a"


def test_round_robin_takes_the_next_one() -> None:
    leaders = ["a"]
    for _ in range(3):
        leaders.append(elect([A, B, C], "round_robin", last_leader=leaders[-1])[0])
    assert leaders == ["a", "b", "c", "a"]


def test_round_robin_begins_anew_when_the_last_leader_is_gone() -> None:
    assert elect([A, C], "round_robin", last_leader="b")[0] == "a"


@given(candidates, st.sampled_from(STRATEGIES), st.none() | st.sampled_from("abcdefg"))
def test_everybody_has_a_rank_and_the_others_keep_their_order(
    nodes: list[Candidate], strategy: Strategy, last: str | None
) -> None:
    order = elect(nodes, strategy, last)
    assert sorted(order) == sorted(node.name for node in nodes)
    assert list(order[1:]) == [node.name for node in nodes if node.name != order[0]]


@given(candidates, st.sampled_from(STRATEGIES), st.sampled_from("abcdefg"))
def test_the_operator_decides_where_the_wanted_node_is_there(
    nodes: list[Candidate], strategy: Strategy, wanted: str
) -> None:
    names = [node.name for node in nodes]
    leader = elect(nodes, strategy, None, wanted)[0]
    assert leader == (wanted if wanted in names else elect(nodes, strategy)[0])


@given(candidates)
def test_nobody_healthier_or_less_loaded_than_the_leader(nodes: list[Candidate]) -> None:
    by_name = {node.name: node for node in nodes}
    healthy = by_name[elect(nodes, "health_based")[0]]
    assert all(health_score(healthy) <= health_score(node) for node in nodes)
    idle = by_name[elect(nodes, "load_based")[0]]
    sound = [node for node in nodes if health_score(node) < 1]
    assert all(load_score(idle) <= load_score(node) for node in sound)
