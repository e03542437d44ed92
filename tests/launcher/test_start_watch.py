from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from launcher.start_watch import StartWatch
from server.progress import Step, heard, said

ORDER = ("mini1", "mini2", "master")
TIMEOUT = 300.0
AT = "192.168.1.11:8100"

steps = st.builds(
    Step, st.integers(0, 3), st.integers(0, 100), st.sampled_from(["joining", "loading"])
)
moments = st.tuples(
    st.floats(0, TIMEOUT / 2),  # seconds since the one before
    st.dictionaries(st.integers(0, 2), steps),
    st.booleans(),
)


def watch(order: tuple[str, ...] = ORDER) -> StartWatch:
    return StartWatch(order, TIMEOUT, 0.0, AT)


def at(percent: int, count: int = 0, what: str = "loading") -> Step:
    return Step(count, percent, what)


@given(st.lists(moments, max_size=30))
def test_it_is_given_up_exactly_when_nothing_has_changed_for_so_long(
    seen: list[tuple[float, dict[int, Step], bool]],
) -> None:
    started = watch()
    now, since = 0.0, 0.0
    before: tuple[dict[int, Step], bool] = {}, False
    for pause, said_so_far, answered in seen:
        now += pause
        if (said_so_far, answered) != before:
            before, since = (said_so_far, answered), now
        started.seen(said_so_far, answered, now)
        assert (started.fault(now) is not None) == (now - since >= TIMEOUT)


@given(st.dictionaries(st.integers(0, 2), steps), st.booleans(), st.sampled_from([1, 2, 3]))
def test_a_start_that_does_not_get_on_always_ends_and_says_where(
    known: dict[int, Step], answered: bool, size: int
) -> None:
    started = watch(ORDER[:size])
    started.seen(known, answered, 1.0)
    fault = started.fault(1.0 + TIMEOUT)
    assert fault is not None
    assert "300 s (launcher.start_timeout)" in fault.reason
    assert fault.node is None or fault.node in ORDER[:size]
    assert size > 1 or fault.node is None, "a single node would only be kept out for nothing"


@given(st.integers(0, 99), st.integers(0), st.integers(0, 100), st.text())
def test_what_a_rank_says_is_heard(rank: int, count: int, percent: int, what: str) -> None:
    what = " ".join(what.split()) or "loading"
    assert heard(said(rank, Step(count, percent, what))) == (rank, Step(count, percent, what))


def test_other_lines_are_none_of_its_words() -> None:
    for line in (
        '{"event": "start: 0 1 2% x"}',
        "start: it",
        "start: 0 1 x% y",
        "start: 0 1 2% ",
        "",
    ):
        assert heard(line) is None


def test_whose_process_says_nothing_is_blamed() -> None:
    started = watch()
    started.seen({0: at(0), 2: at(100)}, False, 1.0)
    fault = started.fault(301.0)
    assert fault is not None
    assert fault.node == "mini2"
    assert fault.reason == (
        "nothing has been heard of the start of mini2 for 300 s (launcher.start_timeout)"
    )


def test_where_nobody_is_heard_of_nobody_is_blamed() -> None:
    fault = watch().fault(TIMEOUT)
    assert fault is not None
    assert fault.node is None
    assert "start of mini1, mini2, master" in fault.reason


def test_a_rank_0_that_can_not_be_reached_is_told_with_its_address() -> None:
    started = watch()
    started.seen(dict.fromkeys(range(3), at(100, what="serving")), False, 1.0)
    assert started.fault(300.9) is None
    fault = started.fault(301.0)
    assert fault is not None
    assert fault.node == "mini1"
    assert f"rank 0 (mini1) has not answered the launcher at {AT} for 300 s" in fault.reason


def test_who_is_behind_is_blamed() -> None:
    started = watch()
    started.seen({0: at(100), 1: at(43, what="Loading layers 10-19"), 2: at(100)}, True, 1.0)
    fault = started.fault(301.0)
    assert fault is not None
    assert fault.node == "mini2"
    assert "mini2 at 'Loading layers 10-19'" in fault.reason


def test_a_download_of_unknown_size_gets_on_by_its_parts() -> None:
    started = watch(ORDER[:1])
    for part in range(10):
        started.seen({0: at(0, count=part)}, False, 200.0 * part)
        assert started.fault(200.0 * (part + 1)) is None
