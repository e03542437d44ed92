from __future__ import annotations

import itertools

from hypothesis import given, settings
from hypothesis import strategies as st

from launcher.breaker import BreakerPolicy, Record

POLICY = BreakerPolicy(allowed=1, hold_initial=20.0, hold_max=600.0, forgive_after=900.0)


def failing(times: list[float], policy: BreakerPolicy = POLICY) -> list[Record]:
    """The records after each failure."""
    records = [Record()]
    for time in times:
        records.append(records[-1].failed(policy, time))
    return records[1:]


def test_a_first_failure_keeps_nobody_out() -> None:
    assert not failing([100.0])[-1].is_held(100.0)


def test_each_further_failure_keeps_out_for_twice_as_long() -> None:
    times = [0.0, 30.0, 80.0, 200.0]
    holds = [record.held_until - at for record, at in zip(failing(times), times, strict=True)]
    assert holds[1:] == [20, 40, 80]


def test_the_longest_hold_is_bounded() -> None:
    assert failing([float(n) for n in range(200)])[-1].held_until == 199 + 600


def test_a_long_time_without_failure_is_a_clean_slate() -> None:
    second, late = failing([0.0, 10.0])[-1], 10.0 + 900.0
    assert second.recent(POLICY, late - 1) == 2
    assert second.recent(POLICY, late) == 0
    assert not second.failed(POLICY, late).is_held(late)


@settings(deadline=None)
@given(
    st.lists(st.floats(0, 500), min_size=2, max_size=30),
    st.integers(0, 5),
    st.floats(0.1, 100),
    st.floats(1, 100),
)
def test_holds_never_shrink_while_failures_go_on(
    gaps: list[float], allowed: int, initial: float, factor: float
) -> None:
    policy = BreakerPolicy(allowed, initial, initial * factor, forgive_after=1000.0)
    times = [sum(gaps[: n + 1]) for n in range(len(gaps))]
    held = [
        max(0.0, record.held_until - time)
        for record, time in zip(failing(times, policy), times, strict=True)
    ]
    # Only those that a failure beyond the allowed ones decided; floats are added and taken away again.
    beyond = held[allowed:]
    assert all(later >= earlier - 1e-6 for earlier, later in itertools.pairwise(beyond))
    assert all(hold <= policy.hold_max + 1e-6 for hold in held)
