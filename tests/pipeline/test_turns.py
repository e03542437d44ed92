"""When decode steps wait for prompts."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.groups import Between, Group, Groups
from pipeline.limits import Limits, Sequence
from pipeline.pacing import Pacing
from pipeline.prefilling import Chunk, Prefilling, Room
from pipeline.scheduler import DecodeBatch, PrefillBatch
from pipeline.turns import HORIZON, in_time, is_far, pays, weigh
from tests.pipeline.scheduler_driver import Driver, limits

# Seconds: of a step, for each sequence that decodes, for each token of a prompt.
FIXED, EACH, TOKEN = 0.040, 0.002, 0.002


def known(stages: int = 2) -> Pacing:
    """As measured on stages that are alike."""
    pacing = Pacing(stages)
    for _ in range(30):
        for batch in (1, 8, 16):
            pacing.observe(batch, (FIXED + EACH * batch,) * stages)
        for tokens in (48, 96, 192):
            pacing.observe_prefill(tokens, (FIXED + TOKEN * tokens,) * stages)
    return pacing


def groups_of(*sizes: int, started: bool = True) -> Groups:
    """Groups that are ready."""
    groups = Groups(lambda _: len(sizes))
    number = 0
    for size in sizes:
        group = groups._empty()
        group.members.extend(range(number, number + size))
        number += size
        if started:
            groups.send(group, 0)
            groups.land(group.id)
    return groups


def chunk(seconds: float, joining: int = 1, tokens: int = 1000) -> Chunk:
    return Chunk(seconds, seconds, (tokens,) * joining)


def roomy(**changes: int | None) -> Limits:
    return replace(limits(stages=2, max_group=32, prefill_chunk=512), **changes)  # type: ignore[arg-type]


def test_steps_wait_for_many_who_join_and_few_who_wait() -> None:
    pacing, bounds = known(), roomy()
    assert pays(bounds, pacing, groups_of(2, 2, started=False), chunk(0.2, joining=4), 30)
    assert not pays(bounds, pacing, groups_of(16, 16), chunk(0.2, joining=1), 33)


@pytest.mark.parametrize("started", [True, False])
def test_what_is_saved_is_what_the_formula_says(started: bool) -> None:
    """k * m * F against R * C, which counts three times for streams that run."""
    pacing, bounds = known(), roomy(groups=2)
    running, joining, everybody = 8, 3, 20
    shared = FIXED * 2 * (1 - 2 / everybody)
    limit = joining * HORIZON * shared / running / (3 if started else 1)
    groups = groups_of(4, 4, started=started)
    assert pays(bounds, pacing, groups, chunk(0.95 * limit, joining), everybody)
    assert not pays(bounds, pacing, groups, chunk(1.05 * limit, joining), everybody)


def test_streams_that_each_have_a_stage_of_their_own_share_nothing() -> None:
    pacing, groups = known(8), groups_of(1, 1, started=False)
    eight = replace(roomy(stages=8), groups=8)
    assert pays(eight, pacing, groups, chunk(0.1, 2), 32)
    assert not pays(eight, pacing, groups, chunk(0.001, 2), 8)


def test_short_answers_are_not_waited_for() -> None:
    pacing, bounds, groups = known(), roomy(), groups_of(2, 2)
    assert pays(bounds, pacing, groups, chunk(0.2, tokens=100), 8)
    assert not pays(bounds, pacing, groups, chunk(0.2, tokens=1), 8)


def test_where_groups_are_full_nothing_is_shared() -> None:
    pacing, groups = known(), groups_of(4, 4)
    assert pays(roomy(), pacing, groups, chunk(0.1, 4), 12)
    assert not pays(roomy(max_group=4), pacing, groups, chunk(0.1, 4), 12)
    single = replace(roomy(), batchable=False)
    assert not pays(single, pacing, groups_of(1, 1, 1), chunk(0.001, 4), 7)


def test_where_steps_cost_only_what_their_sequences_cost_nobody_waits() -> None:
    pacing = Pacing(2)
    for _ in range(30):
        for batch in (1, 4, 16):
            pacing.observe(batch, (0.01 * batch,) * 2)
        pacing.observe_prefill(64, (0.1, 0.1))
    assert not pays(roomy(), pacing, groups_of(8, 8), chunk(0.1, 4), 20)


def test_running_streams_wait_within_the_bound_and_newcomers_as_long_as_it_pays() -> None:
    pacing, bounds = known(), replace(roomy(), inter_token=1.0)
    pacing.groups(4)
    running, newcomers = groups_of(2, 2), groups_of(2, 2, started=False)
    verdicts = []
    for _ in range(8):
        verdicts.append(weigh(bounds, pacing, running, chunk(0.15, 4), 30))
        for groups in (running, newcomers):
            groups.note_chunk(0.15, bounds.chunks_between)
    assert all(verdict.pays for verdict in verdicts)
    late = [len(verdict.late) for verdict in verdicts]
    assert late == sorted(late)
    assert (late[0], late[-1]) == (0, 2)
    assert not weigh(bounds, pacing, newcomers, chunk(0.15, 4), 30).late
    assert not weigh(replace(bounds, inter_token=None), pacing, running, chunk(0.15, 4), 30).late


def test_before_anything_is_measured_only_streams_without_a_token_wait() -> None:
    assert weigh(roomy(), Pacing(2), groups_of(1, started=False), chunk(float("inf")), 9).pays
    assert not weigh(roomy(), Pacing(2), groups_of(1), chunk(float("inf")), 9).pays


@given(
    prompt=st.integers(2, 20_000),
    tokens=st.integers(8, 512),
    make=st.integers(1, 100),
    sizes=st.lists(st.integers(1, 4), min_size=1, max_size=2),
    started=st.booleans(),
)
@settings(deadline=None, max_examples=60)
def test_what_is_far_never_pays(
    prompt: int, tokens: int, make: int, sizes: list[int], started: bool
) -> None:
    pacing, bounds, groups = known(), roomy(), groups_of(*sizes, started=started)
    prefilling = Prefilling()
    prefilling.append(Sequence(99, prompt, make))
    everybody = sum(sizes) + 1
    coming = prefilling.coming(Room(tokens, rows=4, padding=16, copied=1e6), pacing.chunks)
    if is_far(bounds, pacing, groups, prefilling.first, everybody):
        assert not weigh(bounds, pacing, groups, coming, everybody).pays


def test_a_long_prompt_is_far_and_its_end_is_not() -> None:
    pacing, bounds, groups = known(), roomy(), groups_of(2)
    first = Sequence(99, 20_000, 100)
    assert is_far(bounds, pacing, groups, first, 3)
    assert not is_far(bounds, Pacing(2), groups, first, 3)
    assert not is_far(bounds, pacing, groups_of(), first, 1)
    first.prefilled = first.prompt - bounds.prefill_chunk
    assert not is_far(bounds, pacing, groups, first, 3)


def test_one_step_in_flight_leaves_nothing_to_wait_for() -> None:
    assert not weigh(roomy(loops=2), known(), groups_of(1, started=False), chunk(0.01, 8), 9).pays


@given(
    seconds=st.lists(st.floats(0.001, 0.5), max_size=12),
    flights=st.lists(st.booleans(), min_size=12, max_size=12),
    stages=st.integers(1, 6),
    more=st.floats(0.001, 0.5),
)
@settings(deadline=None, max_examples=40)
def test_a_longer_wait_is_never_sooner_in_time(
    seconds: list[float], flights: list[bool], stages: int, more: float
) -> None:
    """Whatever went before: with another chunk, or a longer one, no stream is in time that was not."""
    pacing = known(stages)
    bounds = replace(roomy(stages=stages), inter_token=2.0)
    group = Group(0, [0], started={0})
    before = True
    for one, flight in zip(seconds, flights, strict=False):
        group.in_flight = 0 if flight else None
        now = in_time(bounds, pacing, group, one)
        assert now or not in_time(bounds, pacing, group, one + more)
        group.prefill.add(one, group.would_wait(bounds.chunks_between))
        group.in_flight = None
        after = in_time(bounds, pacing, group, 1e-6)
        assert before or not after
        before = after


def test_what_a_member_has_waited_elsewhere_goes_with_it() -> None:
    groups = groups_of(2, 1)
    source, target = groups.active
    for _ in range(3):
        source.prefill.add(0.2, source.would_wait(1))
    target.take(1, source)
    assert target.started == {1, 2}
    assert source.started == {0}
    assert target.prefill.extra == pytest.approx(0.6)  # the one that went freely there included
    assert target.prefill.chunks == 0


def test_who_moves_to_another_group_keeps_its_turn() -> None:
    groups = groups_of(4, 2, 1)
    first, second, third = groups.active
    groups.rebalance()
    assert third.members == [6, 3]
    turns = []
    for step in range(3):
        group = groups.ready()
        assert group is not None
        groups.send(group, step)
        turns.append(group.id)
    assert turns == [first.id, third.id, second.id]


def test_nobody_has_waited_in_a_group_without_members() -> None:
    groups = groups_of(2, 1)
    source, emptied = groups.active
    groups.leave(2)
    for _ in range(3):
        groups.note_chunk(0.2, 1)
    groups.send(source, 1)
    groups.land(source.id)
    groups.rebalance()
    assert (emptied.members, emptied.prefill) == ([1], Between())


def test_newcomers_are_left_out_while_others_need_a_token() -> None:
    groups = groups_of(2)
    [group] = groups.active
    group.members += [7, 8]
    groups.join(9)
    assert groups.send(group, 1, hold=True) == (0, 1)
    assert group.members == [0, 1, 7, 8, 9]
    groups.land(group.id)
    group.take(5, other := Group(1, [5], started={5}))
    assert not other.members
    assert groups.send(group, 2, hold=True) == (0, 1, 5)
    assert group.members == [0, 1, 5, 7, 8, 9]  # the stages append who comes later
    assert not group.moved_in
    groups.land(group.id)
    assert groups.send(group, 3) == (0, 1, 5, 7, 8, 9)


def test_a_group_of_newcomers_goes_whole() -> None:
    groups = groups_of(3, started=False)
    [group] = groups.active
    assert groups.send(group, 1, hold=True) == (0, 1, 2)


# in the scheduler


def trained(driver: Driver, stages: int) -> None:
    driver.scheduler.pacing = known(stages)


def kinds(driver: Driver) -> str:
    """P and D for all steps so far."""
    works = [plan.work for plan in driver.plans]
    return "".join("P" if isinstance(work, PrefillBatch) else "D" for work in works if work)


def seconds_of(work: PrefillBatch | DecodeBatch | None, stages: int) -> tuple[float, ...]:
    if isinstance(work, PrefillBatch):
        return (FIXED + TOKEN * work.tokens,) * stages
    return (FIXED + EACH * (len(work.sequences) if work else 0),) * stages


def run(driver: Driver, stages: int, turns: int) -> None:
    """As a ring does: a choice, and a result once all stages have a step."""
    for _ in range(turns):
        if driver.choose() is None or len(driver.flying) > stages:
            driver.absorb(seconds_of(driver.flying[0].work, stages))


@pytest.mark.parametrize("stages", [1, 2, 4])
def test_prompts_that_come_at_once_are_all_prefilled_before_the_first_step(stages: int) -> None:
    driver = Driver(
        replace(
            limits(stages=stages, max_requests=99, max_running=99), max_group=32, prefill_chunk=96
        )
    )
    trained(driver, stages)
    for _ in range(12):
        driver.add(prompt=49, max_tokens=100)
    run(driver, stages, 60)
    assert kinds(driver).strip("D").count("D") == 0
    assert driver.scheduler.postponed.chunks > 2
    assert driver.scheduler.postponed.seconds > 0
    driver.drain()


def test_a_stream_that_runs_gets_its_token_among_prompts_that_never_end() -> None:
    """And they are prefilled, all of them in their turn."""
    driver = Driver(
        replace(
            limits(stages=2, max_requests=99, max_running=99),
            max_group=32,
            prefill_chunk=96,
            inter_token=1.0,
        )
    )
    trained(driver, 2)
    stream = driver.add(prompt=1, max_tokens=10_000)
    run(driver, 2, 6)
    waited, worst, served = 0.0, 0.0, 0
    for _ in range(400):
        while driver.scheduler.waiting < 4:
            driver.add(prompt=49, max_tokens=2)
            served += 1
        run(driver, 2, 1)
        work = driver.plans[-1].work
        if isinstance(work, PrefillBatch):
            waited += seconds_of(work, 2)[0]
        elif work is not None and stream in work.sequences:
            worst, waited = max(worst, waited), 0.0
    assert 0.2 < worst < 0.8  # what is planned for, of which stages and decoding take their part
    assert served > 100
