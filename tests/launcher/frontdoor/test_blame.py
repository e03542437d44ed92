"""Who breaks the engine is found soon; who was there when somebody else broke it is hardly ever blamed."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from launcher.frontdoor.blame import CHANCE, FEW, LONGEST, MOST, SHORTEST, Trials

seconds = st.floats(0.0, 1000.0)
# What becomes of one request: the ring fails under it, holds without it, or fails without it.
happenings = st.lists(
    st.tuples(st.just("failed"), seconds)
    | st.tuples(st.just("held"), seconds)
    | st.tuples(st.just("failed without"), seconds),
    max_size=40,
)


def after(what: list[tuple[str, float]]) -> Trials:
    trials = Trials()
    for kind, amount in what:
        if kind == "failed":
            trials = trials.failed(amount)
        elif kind == "held":
            trials = trials.held_without(amount)
        else:
            trials = trials.failed_without()
    return trials


@given(happenings)
def test_nobody_is_given_up_before_the_ring_was_seen_to_do_better_without(
    what: list[tuple[str, float]],
) -> None:
    trials = after(what)
    kinds = [kind for kind, _ in what]
    ever = kinds.count("failed")
    if not trials.is_guilty:
        assert ever < MOST
        return
    since = len(kinds) - kinds[::-1].index("failed without") if "failed without" in kinds else 0
    had = [amount for kind, amount in what[since:] if kind == "failed"]
    held = sum(amount for kind, amount in what[since:] if kind == "held")
    assert ever >= MOST or (len(had) > FEW and held > 0)
    if ever < MOST:
        share = sum(had) / (sum(had) + held)
        assert share ** len(had) <= CHANCE * 1.001


@given(happenings, seconds)
def test_what_speaks_for_a_request_never_makes_it_guilty(
    what: list[tuple[str, float]], amount: float
) -> None:
    trials = after(what)
    assert not trials.failed_without().is_guilty or trials.is_guilty
    assert trials.held_without(amount).chance <= trials.chance
    assert trials.pause == 0.0 or SHORTEST <= trials.pause <= LONGEST
    assert (trials.pause > 0.0) == (trials.faults >= FEW)


@given(st.floats(0.01, 3600.0))
def test_who_breaks_the_engine_each_time_is_found_in_bounded_time(lasts: float) -> None:
    trials = Trials()
    while not trials.is_guilty:
        if trials.pause:
            trials = trials.held_without(trials.pause)
        trials = trials.failed(lasts)
    assert trials.faults <= MOST
    if lasts <= LONGEST / 8:
        assert trials.faults == FEW + 1


def test_a_ring_that_fails_by_itself_seldom_costs_a_request() -> None:
    """Its prefill takes as long as the ring lives on average, or many times that."""
    rng = random.Random(20)
    for prefill in (5.0, 10.0, 40.0, 200.0):
        lost = sum(is_lost(rng, prefill) for _ in range(4000))
        assert lost / 4000 < 2 * CHANCE, prefill


def is_lost(rng: random.Random, prefill: float, mean: float = 10.0) -> bool:
    """Whether a request without blame is given up; at last it may have its token."""
    trials = Trials()
    for _ in range(MOST - 1):
        left = rng.expovariate(1 / mean)  # until the ring fails
        if trials.pause > left:
            trials = trials.failed_without()
            continue
        if trials.pause:
            trials, left = trials.held_without(trials.pause), left - trials.pause
        if left > prefill:
            return False
        trials = trials.failed(left)
        if trials.is_guilty:
            return True
    return False
