"""Limits as pure objects: what was used in any order never exceeds what a minute allows."""

from __future__ import annotations

import hypothesis
import pytest
from hypothesis import strategies as st

from config.access import LimitsConfig, RoleLimits
from server.access.account import Account
from server.access.errors import RateLimited
from server.access.limits import REMEMBERED, Limiter
from server.access.principal import KeyLimits, Principal, Role


def limiter(places: int = 10, **user: int) -> Limiter:
    return Limiter(LimitsConfig(user=RoleLimits(**user)), places)


def someone(name: str = "a", **limits: int) -> Principal:
    return Principal(name, name, Role.USER, KeyLimits(**limits))


def test_requests_in_a_minute() -> None:
    under_test = limiter(requests_per_minute=3)
    for _ in range(3):
        under_test.count_request(someone(), 0.0)
    with pytest.raises(RateLimited, match="3 requests in a minute") as refusal:
        under_test.count_request(someone(), 0.0)
    assert refusal.value.headers["retry-after"] == "20"
    under_test.count_request(someone("b"), 0.0)  # another key
    with pytest.raises(RateLimited):
        under_test.count_request(someone(), 19.9)
    under_test.count_request(someone(), 20.0)


def test_tokens_are_reserved_and_corrected() -> None:
    under_test = limiter(tokens_per_minute=100)
    taken = under_test.reserve(someone(), 1, 80, 0.0)
    with pytest.raises(RateLimited, match="100 tokens in a minute, this request reserves 80"):
        under_test.reserve(someone(), 1, 80, 0.0)
    under_test.settle(someone(), 1, taken, 10, 0.0)
    assert under_test.headers(someone(), 0.0)["x-ratelimit-remaining-tokens"] == "90"
    under_test.reserve(someone(), 1, 80, 0.0)


def test_a_request_larger_than_the_limit_is_served_when_all_tokens_are_there() -> None:
    under_test = limiter(tokens_per_minute=100)
    taken = under_test.reserve(someone(), 1, 5000, 0.0)
    under_test.settle(someone(), 1, taken, 250, 0.0)  # used more than the minute had: it is owed
    with pytest.raises(RateLimited) as refusal:
        under_test.reserve(someone(), 1, 1, 60.0)
    assert refusal.value.retry_after == pytest.approx(30.6)


def test_places() -> None:
    under_test = limiter(places=4, concurrent_requests=3)
    under_test.reserve(someone(), 3, 1, 0.0)
    with pytest.raises(
        RateLimited, match="3 sequences running or waiting; it has 3 and asks for 1"
    ):
        under_test.reserve(someone(), 1, 1, 0.0)
    under_test.settle(someone(), 3, 0, 1, 0.0)
    under_test.reserve(someone(), 1, 1, 0.0)
    generous = someone("b", concurrent_requests=50)
    with pytest.raises(RateLimited, match="4 sequences"):  # the share of the queue is for all
        under_test.reserve(generous, 5, 1, 0.0)


def test_what_is_refused_takes_nothing() -> None:
    under_test = limiter(places=2, tokens_per_minute=100)
    with pytest.raises(RateLimited):
        under_test.reserve(someone(), 3, 50, 0.0)
    under_test.reserve(someone(), 1, 100, 0.0)
    with pytest.raises(RateLimited):
        under_test.reserve(someone(), 1, 50, 0.0)
    under_test.reserve(someone(), 1, 100, 60.0)  # the place of the refused one is free


def test_limits_of_a_key_win_over_those_of_its_role() -> None:
    under_test = limiter(requests_per_minute=1, max_tokens=5)
    limits = under_test.limits(someone(requests_per_minute=7))
    assert (limits.requests_per_minute, limits.max_tokens) == (7, 5)
    assert under_test.limits(Principal("o", "o", Role.OPERATOR)) == KeyLimits()


def test_headers_tell_what_is_limited() -> None:
    under_test = limiter(requests_per_minute=60)
    assert under_test.headers(someone(), 0.0) == {
        "x-ratelimit-limit-requests": "60",
        "x-ratelimit-remaining-requests": "60",
        "x-ratelimit-reset-requests": "0.000s",
    }
    under_test.count_request(someone(), 0.0)
    assert under_test.headers(someone(), 0.5)["x-ratelimit-remaining-requests"] == "59"
    assert under_test.headers(someone(), 0.5)["x-ratelimit-reset-requests"] == "0.500s"
    assert limiter().headers(someone(), 0.0) == {}


def test_a_changed_limit_keeps_the_part_that_is_used() -> None:
    under_test = limiter()
    for _ in range(5):
        under_test.count_request(someone(requests_per_minute=10), 0.0)
    shown = under_test.headers(someone(requests_per_minute=100), 0.0)
    assert shown["x-ratelimit-remaining-requests"] == "50"


def test_state_of_idle_keys_is_forgotten() -> None:
    under_test = limiter(requests_per_minute=1)
    for number in range(REMEMBERED):
        under_test.count_request(someone(str(number)), 0.0)
    under_test.count_request(someone("more"), 61.0)
    assert len(under_test._usage) < 10


def test_a_holding_ends_once() -> None:
    under_test, account = limiter(places=1), Account(someone())
    account.limiter, account.clock = under_test, lambda: 0.0
    holding = account.start(1, prompt_tokens=5, output_tokens=10)
    holding.end(3)
    holding.end(3)
    assert (account.prompt_tokens, account.completion_tokens) == (5, 3)
    assert under_test._usage["a"].sequences == 0


@hypothesis.settings(max_examples=150, deadline=None)
@hypothesis.given(
    limit=st.integers(1, 500),
    requests=st.lists(
        st.tuples(st.floats(0, 30), st.integers(1, 800), st.floats(0, 1)), max_size=60
    ),
)
def test_no_minute_has_more_than_twice_the_limit(
    limit: int, requests: list[tuple[float, int, float]]
) -> None:
    """A full bucket and what comes in meanwhile; as long as nothing uses more than it reserved."""
    under_test, now, used = limiter(tokens_per_minute=limit, places=1), 0.0, []
    for wait, asked, part in requests:
        now += wait
        try:
            taken = under_test.reserve(someone(), 1, asked, now)
        except RateLimited:
            continue
        spent = int(taken * part)
        under_test.settle(someone(), 1, taken, spent, now)
        used.append((now, spent))
    for start, _ in used:
        assert sum(spent for at, spent in used if start <= at < start + 60) <= 2 * limit + 1
