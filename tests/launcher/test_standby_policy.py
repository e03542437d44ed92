"""When the ranks of the next launch are begun, dropped and used: for any course of events."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from launcher.standby_policy import LONGEST_PAUSE, Begin, Drop, Seen, Waiting, choose

NAMES = ("mini1", "mini2", "master")
SETTLE = 8.0

names = st.sets(st.sampled_from(NAMES)).map(frozenset)
orders = st.lists(st.sampled_from(NAMES), unique=True, min_size=1)
times = st.floats(0, 1e6)


@st.composite
def waitings(draw: st.DrawFn) -> Waiting:
    nodes = tuple(draw(orders))
    return Waiting(nodes, draw(names) & set(nodes), draw(names) & set(nodes))


@st.composite
def seens(draw: st.DrawFn) -> Seen:
    return Seen(
        draw(times),
        draw(st.none() | times),
        tuple(draw(st.lists(st.sampled_from(NAMES), unique=True))),
        draw(st.none() | waitings()),
        draw(st.none() | times),
        draw(st.integers(0, 10**6)),
    )


@given(seens())
def test_nothing_is_touched_while_no_ring_serves(seen: Seen) -> None:
    """It is about to be used, or a launch is under way with which nothing is to compete."""
    assert choose(replace(seen, calm_since=None), SETTLE) is None


@given(seens())
def test_a_ring_has_the_machines_to_itself_at_first(seen: Seen) -> None:
    if choose(seen, SETTLE) is not None:
        assert seen.calm_since is not None
        assert seen.now >= seen.calm_since + SETTLE
        assert seen.begun_at is None or seen.now >= seen.begun_at + SETTLE


@given(seens())
def test_only_who_is_missing_on_a_node_within_reach_is_a_reason_to_change(seen: Seen) -> None:
    choice = choose(seen, SETTLE)
    present = set() if seen.waiting is None else set(seen.waiting.nodes) - seen.waiting.gone
    if set(seen.reachable) <= present:
        assert choice is None
    if isinstance(choice, Begin):
        assert seen.waiting is None
        assert choice.nodes == seen.reachable
    if isinstance(choice, Drop):
        assert seen.waiting is not None
        assert not set(seen.reachable) <= present


@given(seens())
def test_sooner_or_later_somebody_waits_on_every_node_within_reach(seen: Seen) -> None:
    """However often it has failed: only ever more seldom, up to a bound."""
    calm = max(seen.now, seen.begun_at or 0.0)
    later = replace(seen, calm_since=calm, now=calm + LONGEST_PAUSE + SETTLE)
    if isinstance(choose(later, SETTLE), Drop):
        later = replace(later, waiting=None)
    choice = choose(later, SETTLE)
    assert choice is None if later.waiting or not seen.reachable else isinstance(choice, Begin)


def test_it_is_tried_again_ever_more_seldom() -> None:
    def pause(failures: int) -> float:
        seen = Seen(0.0, 0.0, NAMES, None, 100.0, failures)
        return next(
            float(wait)
            for wait in range(10_000)
            if choose(replace(seen, now=100.0 + wait), SETTLE) is not None
        )

    assert [pause(n) for n in (0, 1, 2, 3)] == [8, 16, 32, 64]
    assert pause(1000) == LONGEST_PAUSE


def test_a_long_settling_time_is_kept() -> None:
    seen = Seen(LONGEST_PAUSE + 1, 0.0, NAMES)
    assert choose(seen, 2 * LONGEST_PAUSE) is None


@given(waitings(), orders)
def test_a_launch_is_theirs_if_all_that_it_needs_are_ready(
    waiting: Waiting, order: list[str]
) -> None:
    """In whatever order, and whatever has become of others."""
    ready = all(name in waiting.warm and name not in waiting.gone for name in order)
    assert waiting.will_do(order) is ready
    assert waiting.will_do(order[::-1]) is ready
