"""Tenants take turns by tokens, whatever they ask for and in whatever order."""

from __future__ import annotations

from collections import defaultdict, deque

import hypothesis
import pytest
from hypothesis import strategies as st

from pipeline.fair_queue import FairQueue
from pipeline.limits import Sequence
from pipeline.scheduler import Scheduler
from tests.pipeline.scheduler_driver import limits

TENANTS = ("a", "b", "c", "d")


class Filler:
    """A queue, and the ids that a scheduler would give."""

    def __init__(self) -> None:
        self.queue = FairQueue()
        self.next_id = 0

    def add(self, tenant: str, tokens: int = 10) -> int:
        self.next_id += 1
        self.queue.append(Sequence(self.next_id, tokens - 1, 1, tenant=tenant))
        return self.next_id

    def pop(self) -> Sequence:
        head = self.queue.head
        assert self.queue.popleft() is head
        return head


def test_with_one_tenant_it_is_a_plain_queue() -> None:
    filler = Filler()
    added = [filler.add("a", tokens) for tokens in (500, 3, 90, 3, 2)]
    assert [filler.pop().id for _ in added] == added
    assert len(filler.queue) == 0
    with pytest.raises(IndexError):
        _ = filler.queue.head


def test_a_single_one_passes_the_fifty_of_another() -> None:
    filler = Filler()
    for _ in range(50):
        filler.add("a")
    for _ in range(7):
        filler.pop()
    single = filler.add("b")
    assert single in {filler.pop().id, filler.pop().id}


def test_tokens_count_and_not_sequences() -> None:
    filler = Filler()
    for _ in range(40):
        filler.add("large", 100)
        filler.add("small", 10)
    served: dict[str, int] = defaultdict(int)
    for _ in range(33):
        served[filler.pop().tenant] += 1
    assert served == {"large": 3, "small": 30}


def test_silence_earns_no_credit() -> None:
    filler = Filler()
    for _ in range(30):
        filler.add("a")
    for _ in range(20):
        filler.pop()
    for _ in range(10):
        filler.add("b")
    assert [filler.pop().tenant for _ in range(6)].count("b") <= 4


def test_what_was_reserved_and_not_used_is_given_back() -> None:
    """A tenant that leaves the length of outputs open is not served less for it."""
    filler = Filler()
    for _ in range(40):
        filler.add("open", 5000)
        filler.add("exact", 50)
    served: dict[str, int] = defaultdict(int)
    for _ in range(20):
        sequence = filler.pop()
        served[sequence.tenant] += 1
        sequence.prefilled = 50  # used, of whatever was reserved
        filler.queue.give_back(sequence)
    assert abs(served["open"] - served["exact"]) <= 2


def test_who_lost_a_place_comes_first_and_is_charged() -> None:
    filler = Filler()
    filler.add("a")
    preempted = Sequence(99, 400, 100, tenant="b")
    filler.queue.put_first(preempted)
    assert filler.pop() is preempted
    filler.add("b")
    assert filler.pop().tenant == "a"


operations = st.one_of(
    st.tuples(st.just("add"), st.sampled_from(TENANTS), st.integers(2, 300)),
    st.tuples(st.just("pop"), st.just(""), st.just(0)),
    st.tuples(st.just("remove"), st.just(""), st.integers(0, 80)),
    st.tuples(st.just("again"), st.just(""), st.just(0)),
)


@hypothesis.settings(max_examples=300, deadline=None)
@hypothesis.given(st.lists(operations, max_size=120))
def test_nobody_is_lost_doubled_or_overtaken_by_his_own(steps: list[tuple[str, str, int]]) -> None:
    filler, lines, first = Filler(), {tenant: deque[int]() for tenant in TENANTS}, deque[int]()
    for what, tenant, number in steps:
        waiting = len(first) + sum(map(len, lines.values()))
        assert len(filler.queue) == waiting
        if what == "add":
            lines[tenant].append(filler.add(tenant, number))
        elif what == "remove":
            filler.queue.remove(number)
            for line in (first, *lines.values()):
                if number in line:
                    line.remove(number)
        elif waiting:
            served = filler.pop()
            line = first or lines[served.tenant]
            assert line.popleft() == served.id
            if what == "again":
                filler.queue.put_first(served)
                first.appendleft(served.id)
    assert set(filler.queue._lines) == {tenant for tenant, line in lines.items() if line}
    if not any(lines.values()):
        while filler.queue:
            filler.pop()
        assert all(mark > filler.queue._now for mark in filler.queue._marks.values())


@hypothesis.settings(max_examples=200, deadline=None)
@hypothesis.given(
    costs=st.lists(
        st.tuples(st.sampled_from(TENANTS), st.integers(2, 300)), min_size=1, max_size=100
    ),
    pops=st.integers(0, 99),
    single=st.integers(2, 300),
)
def test_a_newcomer_waits_for_at_most_one_of_each_other(
    costs: list[tuple[str, int]], pops: int, single: int
) -> None:
    filler = Filler()
    for tenant, tokens in costs:
        filler.add(tenant, tokens)
    for _ in range(min(pops, len(costs))):
        filler.pop()
    newcomer = filler.add("newcomer", single)
    before = []
    while (served := filler.pop()).id != newcomer:
        before.append(served.tenant)
    assert len(before) == len(set(before))


@hypothesis.settings(max_examples=200, deadline=None)
@hypothesis.given(
    a=st.lists(st.integers(2, 300), min_size=30, max_size=30),
    b=st.lists(st.integers(2, 300), min_size=30, max_size=30),
    start=st.integers(0, 25),
    count=st.integers(1, 25),
)
def test_of_two_that_always_wait_neither_gets_far_ahead(
    a: list[int], b: list[int], start: int, count: int
) -> None:
    filler = Filler()
    for one, other in zip(a, b, strict=True):
        filler.add("a", one)
        filler.add("b", other)
    served = {"a": 0, "b": 0}
    for turn in range(start + count):
        sequence = filler.pop()
        if len(filler.queue._lines) < 2:
            return
        if turn >= start:
            served[sequence.tenant] += sequence.kv_tokens
    assert abs(served["a"] - served["b"]) <= max(a) + max(b)


def test_the_scheduler_admits_in_turns() -> None:
    """One place, and another tenant's single among many: it is the next but one at most."""
    scheduler = Scheduler(limits(max_requests=100, max_running=1))
    for _ in range(50):
        scheduler.add(scheduler.take_id(), 1, 5, tenant="many")
    order: list[int] = []

    def serve() -> None:
        plan = scheduler.choose()
        assert plan is not None
        (running,) = scheduler._running
        order.append(running)
        scheduler.absorb(plan.id)
        scheduler.finish(running)
        released = scheduler.choose()
        if released is not None:
            scheduler.absorb(released.id)

    for _ in range(3):
        serve()
    single = scheduler.take_id()
    scheduler.add(single, 1, 5, tenant="single")
    for _ in range(3):
        serve()
    assert single in order[3:5]
