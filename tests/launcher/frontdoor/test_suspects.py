"""Whatever is asked at the same time, what breaks rank 0 is found, and only that."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import launcher.frontdoor.suspects as suspects_module
from launcher.frontdoor.suspects import (
    MOST_FAULTS,
    MOST_FRUITLESS,
    MOST_OWN,
    SUSPICIOUS,
    Case,
    Suspects,
    Verdict,
)

LENGTH = 10
FEW_FAULTS = 5  # in place of MOST_FAULTS, below LENGTH - MOST_OWN
STEPS = 20_000  # far more than any of these takes


@dataclass
class Request:
    """`kills`: what makes the ring fail: asking for the token at this position, or the first one of any attempt
    after so many; None: nothing.  `glitches`: only its own connection is cut off by it.
    """

    kills: int | None = None
    always: bool = False
    glitches: bool = False
    tokens: int = 0
    since: int = 0  # tokens of this attempt
    case: Case = field(default_factory=Case)
    end: str = ""

    @property
    def breaks(self) -> bool:
        if self.kills is None:
            return False
        return self.since >= self.kills if self.always else self.tokens == self.kills


@dataclass
class Cluster:
    """A rank 0 that fails under some requests, and is replaced at once."""

    requests: list[Request]
    choices: st.DataObject
    outside: int = 0  # faults that nobody is to blame for
    suspects: Suspects = field(default_factory=Suspects)
    leader: int = 0
    failures: int = 0

    def running(self) -> list[Request]:
        return [r for r in self.requests if not r.end and r.case.leader is not None]

    def able(self) -> list[Request]:
        waiting = [r for r in self.requests if not r.end and r.case.leader is None]
        return [r for r in waiting if self.suspects.may_start(r.case, self.leader)]

    def run(self) -> None:
        for _ in range(STEPS):
            able, running = self.able(), self.running()
            if all(request.end for request in self.requests):
                return
            assert able or running, "somebody can always go on"
            if self.outside and self.choices.draw(st.integers(0, 9)) == 0:
                self.outside -= 1
                self.fail()
                continue
            self.act(self.choices.draw(st.sampled_from(able + running)))
        raise AssertionError("it does not end")

    def act(self, request: Request) -> None:
        if request.case.leader is None:
            request.since = 0
            self.suspects.start(request.case, self.leader)
        elif request.breaks and request.glitches:
            self.interrupt(request)
        elif request.breaks:
            self.fail()
        else:
            request.tokens, request.since = request.tokens + 1, request.since + 1
            self.suspects.got_token(request.case)
            if request.tokens == LENGTH:
                request.end = "finished"
                self.suspects.forget(request.case)

    def fail(self) -> None:
        self.failures += 1
        for request in self.choices.draw(st.permutations(self.running())):
            self.interrupt(request)
        self.leader += 1

    def interrupt(self, request: Request) -> None:
        if self.suspects.end(request.case, fault=True) is not Verdict.GOES_ON:
            request.end = "given up"
            self.suspects.forget(request.case)


good = st.builds(Request)
bad = st.builds(
    Request,
    kills=st.integers(0, LENGTH - 1),
    always=st.just(False),
    glitches=st.booleans(),
) | st.builds(Request, kills=st.sampled_from([0, 1]), always=st.just(True), glitches=st.booleans())


@settings(max_examples=100)
@given(st.lists(good | bad, min_size=1, max_size=6), st.data())
def test_what_breaks_rank_0_is_given_up_and_nothing_else(
    requests: list[Request], choices: st.DataObject
) -> None:
    cluster = Cluster(requests, choices)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(suspects_module, "MOST_FAULTS", FEW_FAULTS)
        cluster.run()
    culprits = [request.kills is not None for request in requests]
    assert [r.end for r in requests] == ["given up" if c else "finished" for c in culprits]
    assert cluster.failures <= sum(culprits) * (FEW_FAULTS + MOST_OWN + MOST_FRUITLESS)


@given(st.lists(good, min_size=2, max_size=8), st.integers(1, 8), st.data())
def test_faults_from_outside_are_not_counted_against_requests_that_have_company(
    requests: list[Request], outside: int, choices: st.DataObject
) -> None:
    """Up to the MOST_FRUITLESS that may come while one is tried alone."""
    cluster = Cluster(requests, choices, min(outside, MOST_FRUITLESS - 1))
    cluster.run()
    assert {request.end for request in requests} == {"finished"}


def at(suspects: Suspects, *cases: Case, leader: int) -> None:
    for case in cases:
        assert suspects.may_start(case, leader)
        suspects.start(case, leader)


def fail(suspects: Suspects, *cases: Case) -> list[Verdict]:
    return [suspects.end(case, fault=True) for case in cases]


def test_suspects_are_tried_one_at_a_time_before_the_others() -> None:
    suspects, one, two, other = Suspects(), Case(), Case(), Case()
    for leader in range(SUSPICIOUS):
        at(suspects, one, two, leader=leader)
        fail(suspects, one, two)
    assert [suspects.may_start(case, 9) for case in (one, two, other)] == [True, False, False]
    suspects.start(one, 9)
    assert not suspects.may_start(two, 9)
    assert suspects.got_token(one)
    assert [suspects.may_start(case, 9) for case in (two, other)] == [True, False]
    suspects.start(two, 9)
    assert not suspects.may_start(other, 9)
    suspects.forget(two)
    assert suspects.may_start(other, 9)


def test_who_was_tried_beside_another_is_tried_again_alone() -> None:
    suspects, one, two = Suspects(), Case(), Case()
    for leader in range(SUSPICIOUS):
        at(suspects, one, two, leader=leader)
        fail(suspects, one, two)
    at(suspects, one, leader=8)
    suspects.got_token(one)
    at(suspects, two, leader=8)
    assert fail(suspects, one, two) == [Verdict.GOES_ON] * 2
    assert two.own == 0
    assert not suspects.may_start(one, 9)
    for leader in range(9, 9 + MOST_FRUITLESS):
        at(suspects, two, leader=leader)
        [verdict] = fail(suspects, two)
    assert verdict is Verdict.FRUITLESS


def test_many_faults_of_others_do_not_end_a_long_request() -> None:
    suspects, long, killer = Suspects(), Case(), Case()
    for leader in range(MOST_FAULTS):
        at(suspects, long, killer, leader=leader)
        suspects.got_token(long)
        suspects.got_token(killer)
        assert fail(suspects, killer, long) == [Verdict.GOES_ON] * 2
    verdicts = []
    for leader in range(100, 100 + MOST_OWN):
        first = long if suspects.may_start(long, leader) else killer
        at(suspects, first, leader=leader)
        assert not suspects.may_start(killer if first is long else long, leader)
        suspects.got_token(first)
        if first is long:
            suspects.forget(long)
            at(suspects, killer, leader=leader)
            suspects.got_token(killer)
        verdicts += fail(suspects, killer)
    assert verdicts[-1] is Verdict.TOO_MANY
    assert long.own == 0


def test_who_fails_at_a_rank_0_that_lives_on_holds_nobody_up() -> None:
    suspects, one, other = Suspects(), Case(), Case()
    at(suspects, other, leader=1)
    verdicts = []
    for _ in range(MOST_FRUITLESS + 1):
        at(suspects, one, leader=1)
        assert suspects.may_start(Case(), 1)
        verdicts += fail(suspects, one)
    assert verdicts == [Verdict.GOES_ON] * MOST_FRUITLESS + [Verdict.FRUITLESS]


def test_what_has_all_of_its_answer_is_blamed_for_nothing_and_holds_nobody_up() -> None:
    """Whatever becomes of rank 0 while its client still reads."""
    suspects, slow, other = Suspects(), Case(), Case()
    for leader in range(MOST_FAULTS):
        at(suspects, slow, leader=leader)
        suspects.got_token(slow)
        suspects.end(slow, fault=True)
    before = slow.faults, slow.own
    assert slow.for_good
    suspects.forget(slow)
    assert suspects.may_start(other, 99)
    assert suspects.end(slow, fault=True) is Verdict.GOES_ON
    assert (slow.faults, slow.own) == before
    assert suspects.may_start(other, 100)
