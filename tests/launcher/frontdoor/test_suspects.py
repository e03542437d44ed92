"""Whatever is asked at the same time, what breaks rank 0 is found, and only that."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import launcher.frontdoor.suspects as suspects_module
from launcher.frontdoor.blame import FEW, LONGEST, MOST, Trials
from launcher.frontdoor.suspects import (
    MOST_FAULTS,
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
    """A rank 0 that fails under some requests, and is replaced at once.  Each step takes a second."""

    requests: list[Request]
    choices: st.DataObject
    outside: int = 0  # faults that nobody is to blame for
    suspects: Suspects = field(default_factory=Suspects)
    leader: int = 0
    failures: int = 0
    now: float = 0.0

    def running(self) -> list[Request]:
        return [r for r in self.requests if not r.end and r.case.leader is not None]

    def waiting(self) -> list[Request]:
        waiting = [r for r in self.requests if not r.end and r.case.leader is None]
        for request in waiting:
            self.suspects.meet(request.case, self.leader, self.now)
        return waiting

    def able(self) -> list[Request]:
        return [r for r in self.waiting() if self.suspects.may_start(r.case, self.leader, self.now)]

    def run(self) -> None:
        for _ in range(STEPS):
            able, running = self.able(), self.running()
            if all(request.end for request in self.requests):
                return
            if self.outside and self.choices.draw(st.integers(0, 9)) == 0:
                self.outside -= 1
                self.fail()
            elif able or running:
                self.now += 1.0
                self.act(self.choices.draw(st.sampled_from(able + running)))
            else:
                pauses = [self.suspects.pause(r.case, self.now) for r in self.waiting()]
                assert any(pauses), "somebody can go on, now or when rank 0 was watched"
                self.now += min(filter(None, pauses))
        raise AssertionError("it does not end")

    def act(self, request: Request) -> None:
        if request.case.leader is None:
            request.since = 0
            self.suspects.start(request.case, self.leader, self.now)
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
        if self.suspects.end(request.case, self.now, fault=True) is not Verdict.GOES_ON:
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
    assert cluster.failures <= sum(culprits) * (FEW_FAULTS + MOST_OWN + MOST)


@given(st.lists(good, min_size=2, max_size=8), st.integers(1, 8), st.data())
def test_faults_from_outside_are_not_counted_against_requests_that_have_company(
    requests: list[Request], outside: int, choices: st.DataObject
) -> None:
    """Nor if they come while one is tried alone, as long as they don't stop whenever it is not."""
    cluster = Cluster(requests, choices, min(outside, FEW))
    cluster.run()
    assert {request.end for request in requests} == {"finished"}


def at(suspects: Suspects, *cases: Case, leader: int, now: float = 0.0) -> None:
    for case in cases:
        suspects.meet(case, leader, now)
        assert suspects.may_start(case, leader, now)
        suspects.start(case, leader, now)


def fail(suspects: Suspects, *cases: Case, now: float = 0.0) -> list[Verdict]:
    return [suspects.end(case, now, fault=True) for case in cases]


def may_start(suspects: Suspects, *cases: Case, leader: int, now: float = 0.0) -> list[bool]:
    for case in cases:
        suspects.meet(case, leader, now)
    return [suspects.may_start(case, leader, now) for case in cases]


def alone(suspects: Suspects, case: Case, leader: int, now: float, seconds: float = 1.0) -> Verdict:
    """It is asked of a rank 0 that fails after a while."""
    at(suspects, case, leader=leader, now=now)
    return suspects.end(case, now + seconds, fault=True)


def test_suspects_are_tried_one_at_a_time_before_the_others() -> None:
    suspects, one, two, other = Suspects(), Case(), Case(), Case()
    for leader in range(SUSPICIOUS):
        at(suspects, one, two, leader=leader)
        fail(suspects, one, two)
    assert may_start(suspects, one, two, other, leader=9) == [True, False, False]
    suspects.start(one, 9, 0.0)
    assert may_start(suspects, two, leader=9) == [False]
    assert suspects.got_token(one)
    assert may_start(suspects, two, other, leader=9) == [True, False]
    suspects.start(two, 9, 0.0)
    assert may_start(suspects, other, leader=9) == [False]
    suspects.forget(two)
    assert may_start(suspects, other, leader=9) == [True]


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
    assert may_start(suspects, one, leader=9) == [False]
    verdicts = [alone(suspects, two, leader, 100.0 * leader) for leader in range(9, 9 + FEW)]
    suspects.meet(two, 50, 1000.0)
    verdicts.append(alone(suspects, two, 50, 1000.0 + LONGEST))
    assert verdicts == [Verdict.GOES_ON] * FEW + [Verdict.FRUITLESS]


def test_rank_0_is_watched_without_it_before_a_request_is_given_up() -> None:
    """Others are served meanwhile, and wait only while it is tried."""
    suspects, one, other = Suspects(), Case(), Case()
    for leader in range(FEW):
        assert alone(suspects, one, leader, 10.0 * leader) is Verdict.GOES_ON
    assert may_start(suspects, one, other, leader=9, now=100.0) == [False, True]
    pause = suspects.pause(one, 100.0)
    assert pause > FEW
    at(suspects, other, leader=9, now=100.0)
    suspects.got_token(other)
    suspects.forget(other)
    assert may_start(suspects, one, other, leader=9, now=100.0 + pause) == [True, False]
    assert alone(suspects, one, 9, 100.0 + pause) is Verdict.FRUITLESS


def test_who_is_away_when_rank_0_fails_was_not_the_cause_before_either() -> None:
    """Up to a bound: somebody may always be at it."""
    suspects, one, other = Suspects(), Case(), Case()
    leader, verdicts = 0, []
    while Verdict.FRUITLESS not in verdicts:
        if may_start(suspects, one, leader=leader) == [True]:
            suspects.start(one, leader, 0.0)
            verdicts.append(suspects.end(one, 1.0, fault=True))
        leader += 1  # by itself
    assert len(verdicts) == MOST
    suspects.forget(one)
    assert may_start(suspects, other, leader=leader) == [True]


def test_what_fails_under_another_suspect_says_nothing_of_who_is_away() -> None:
    suspects, one, two = Suspects(), Case(), Case()
    for leader in range(SUSPICIOUS):
        at(suspects, one, two, leader=leader)
        fail(suspects, one, two)
    for leader in range(10, 10 + FEW):
        alone(suspects, one, leader, 10.0 * leader)
    before = one.trials
    assert before.faults == FEW
    suspects.meet(one, 50, 500.0)
    alone(suspects, two, 50, 500.0)
    suspects.meet(one, 51, 510.0)
    assert one.trials == before
    suspects.meet(one, 52, 520.0)  # this one failed under nobody
    assert one.trials == Trials(before=FEW)


def test_many_faults_of_others_do_not_end_a_long_request() -> None:
    suspects, long, killer = Suspects(), Case(), Case()
    for leader in range(MOST_FAULTS):
        at(suspects, long, killer, leader=leader)
        suspects.got_token(long)
        suspects.got_token(killer)
        assert fail(suspects, killer, long) == [Verdict.GOES_ON] * 2
    verdicts = []
    for leader in range(100, 100 + MOST_OWN):
        first = long if may_start(suspects, long, leader=leader) == [True] else killer
        at(suspects, first, leader=leader)
        assert may_start(suspects, killer if first is long else long, leader=leader) == [False]
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
    verdicts, now = [], 0.0
    while Verdict.FRUITLESS not in verdicts:
        suspects.meet(one, 1, now)
        now += suspects.pause(one, now)
        assert may_start(suspects, Case(), leader=1, now=now) == [True]
        verdicts.append(alone(suspects, one, 1, now))
        now += 1.0
    assert len(verdicts) == FEW + 2  # the last one counts once it is seen that rank 0 lives on


def test_what_has_all_of_its_answer_is_blamed_for_nothing_and_holds_nobody_up() -> None:
    """Whatever becomes of rank 0 while its client still reads."""
    suspects, slow, other = Suspects(), Case(), Case()
    for leader in range(MOST_FAULTS):
        at(suspects, slow, leader=leader)
        suspects.got_token(slow)
        fail(suspects, slow)
    before = slow.faults, slow.own
    assert slow.for_good
    suspects.forget(slow)
    assert may_start(suspects, other, leader=99) == [True]
    assert fail(suspects, slow) == [Verdict.GOES_ON]
    assert (slow.faults, slow.own) == before
    assert may_start(suspects, other, leader=100) == [True]
