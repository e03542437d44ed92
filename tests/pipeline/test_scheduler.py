"""The scheduler against a model of the stages, in any order of arrivals, results, ends and cancellations."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from pipeline.errors import QueueFull
from pipeline.scheduler import DecodeBatch
from tests.pipeline.scheduler_driver import ChosenPacing, Driver, limits


class SchedulerMachine(RuleBasedStateMachine):
    driver: Driver
    pacing: ChosenPacing

    @initialize(
        stages=st.integers(1, 4),
        max_running=st.integers(1, 8),
        max_group=st.sampled_from([1, 2, 3, 8]),
        batchable=st.sampled_from([True, True, False]),
        paddable=st.booleans(),
        prefill_chunk=st.sampled_from([1, 2, 3, 4, 12, 40]),
        kv_tokens=st.sampled_from([None, 40, 90]),
        groups=st.sampled_from([None, None, 1, 3]),
        loops=st.sampled_from([1, 1, 1, 2]),
        wanted=st.integers(1, 4),
        prefix_tokens=st.sampled_from([0, 20, 50, 1000]),
        prefix_sequences=st.sampled_from([1, 3, 100]),
        cut_limit=st.sampled_from([None, 0, 24]),
    )
    def start(self, wanted: int, **bounds: int | None) -> None:
        self.pacing = ChosenPacing(wanted)
        self.driver = Driver(limits(**bounds), self.pacing)
        self.bounds = self.driver.scheduler.limits
        self.largest, self.most = self.bounds.group_size, self.bounds.max_running

    @rule(prompt=st.integers(1, 12), max_tokens=st.integers(1, 20))
    def add(self, prompt: int | list[int], max_tokens: int) -> None:
        if len(self.driver.budget) >= self.driver.scheduler.limits.max_requests:
            with pytest.raises(QueueFull):
                self.driver.add(prompt, max_tokens)
        else:
            self.driver.add(prompt, max_tokens)

    @rule(
        common=st.integers(0, 30),
        own=st.lists(st.integers(0, 4), min_size=1, max_size=8),
        max_tokens=st.integers(1, 5),
        times=st.integers(1, 3),
    )
    def add_alike(self, common: int, own: list[int], max_tokens: int, times: int) -> None:
        prompt = [i % 5 for i in range(common)] + own
        for _ in range(times):
            if self.bounds.kv_tokens is None or len(prompt) + max_tokens <= self.bounds.kv_tokens:
                self.add(prompt, max_tokens)

    @rule(data=st.data(), more=st.integers(1, 5))
    def add_next_turn(self, data: st.DataObject, more: int) -> None:
        texts = self.driver.stages.texts
        said = [t for t in texts.values() if t and t[0] >= 0 and len(t) + more + 5 <= 40]
        if said:
            self.add(data.draw(st.sampled_from(said)) + [1] * more, 5)

    @rule(tokens=st.sampled_from([0, 30]))
    def drop_prefixes(self, tokens: int) -> None:
        self.driver.scheduler.drop_prefixes(tokens)

    @rule()
    def choose(self) -> None:
        self.driver.choose()

    @precondition(lambda self: self.driver.flying)
    @rule()
    def absorb(self) -> None:
        self.driver.absorb()

    @rule(used=st.sampled_from([0.5, 0.95, 1.2, 1.2]))
    def observe_memory(self, used: float) -> None:
        self.driver.observe_memory(used)

    @rule(turns=st.integers(1, 8))
    def run(self, turns: int) -> None:
        for _ in range(turns):
            self.driver.turn()
            self.sound()

    @precondition(lambda self: self.driver.budget)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        self.driver.finish(data.draw(st.sampled_from(sorted(self.driver.budget))))

    @rule()
    def cancel_unknown(self) -> None:
        self.driver.scheduler.finish(10**6)

    @rule(wanted=st.integers(1, 4))
    def other_pacing(self, wanted: int) -> None:
        self.pacing.wanted = wanted

    @rule(
        max_requests=st.integers(1, 16),
        max_group=st.integers(1, 8),
        prefill_chunk=st.sampled_from([1, 4, 40]),
    )
    def configure(self, max_requests: int, max_group: int, prefill_chunk: int) -> None:
        """Dynamic settings."""
        scheduler = self.driver.scheduler
        scheduler.reconfigure(
            replace(
                scheduler.limits,
                max_requests=max_requests,
                max_running=max_requests,
                max_group=max_group,
                prefill_chunk=prefill_chunk,
            )
        )
        self.largest = max(self.largest, scheduler.limits.group_size)
        self.most = max(self.most, max_requests)
        self.driver.stages.limits = scheduler.limits

    @invariant()
    def sound(self) -> None:
        scheduler, live = self.driver.scheduler, set(self.driver.budget)
        scheduler.check()
        assert scheduler.in_flight == len(self.driver.flying) <= self.bounds.window
        assert scheduler.running + scheduler.waiting == len(live)
        assert scheduler.running <= self.most
        if self.bounds.kv_tokens is not None:
            held = self.driver.stages.held
            stages = self.driver.stages
            assert (
                sum(
                    len(stages.contents[s]) if s in stages.retained else self.driver.asked[s]
                    for s in held
                )
                <= self.bounds.kv_tokens
            )
        for plan in self.driver.flying:
            if isinstance(plan.work, DecodeBatch):
                self._together(set(plan.work.sequences) & live)
                assert len(plan.work.sequences) <= self.largest

    def _together(self, sequences: set[int]) -> None:
        """No member of a batch in flight has gone to another group."""
        groups = self.driver.scheduler.groups
        assert not sequences or any(sequences <= set(members) for members in groups)

    def teardown(self) -> None:
        if hasattr(self, "driver"):
            self.driver.drain()


TestScheduler = SchedulerMachine.TestCase
TestScheduler.settings = settings(max_examples=150, stateful_step_count=60, deadline=None)


@pytest.mark.parametrize("seed", range(150))
def test_long_walks_with_many_moves_keep_the_stages_in_step(seed: int) -> None:
    """Longer than hypothesis would walk: members that go from group to group and back need a history."""
    r = random.Random(seed)
    pacing = ChosenPacing(3)
    driver = Driver(
        limits(stages=r.randint(1, 4), max_group=r.choice([1, 2, 3, 8]), loops=r.choice([1, 1, 2])),
        pacing,
    )
    for _ in range(300):
        event = r.random()
        if event < 0.25 and len(driver.budget) < 16:
            driver.add(r.randint(1, 12), r.randint(1, 40))
        elif event < 0.35:
            pacing.wanted = r.randint(1, 4)
        elif event < 0.40 and driver.budget:
            driver.finish(r.choice(sorted(driver.budget)))
        elif event < 0.70:
            driver.choose()
        elif driver.flying:
            driver.absorb()
        driver.scheduler.check()
    driver.drain()


@given(
    stages=st.integers(1, 4),
    max_group=st.sampled_from([1, 2, 8]),
    wanted=st.integers(1, 4),
    seed=st.integers(0, 1 << 32),
)
@settings(max_examples=40, deadline=None)
def test_nobody_starves_while_others_keep_coming(
    stages: int, max_group: int, wanted: int, seed: int
) -> None:
    r = random.Random(seed)
    chunks, tokens, requests, running = 6, 6, 6, 4
    bounds = limits(stages=stages, max_group=max_group, max_requests=requests, max_running=running)
    driver = Driver(bounds, ChosenPacing(wanted))
    # Waiting: the requests ahead do all their work.  Then four prompts take turns, with one step of each
    # group at most between two chunks; then one round of the groups, and what is in flight.
    bound = requests * (chunks + tokens) + 4 * chunks * (running + 1) + running + bounds.window
    added: dict[int, int] = {}
    for _ in range(4 * bound):
        if len(driver.budget) < requests:
            prompt = r.choice([1, 2, 1 + chunks * bounds.prefill_chunk])
            added[driver.add(prompt, r.randint(1, tokens))] = len(driver.plans)
        driver.turn()
        for sequence in list(added):
            if sequence in driver.stages.decoded:
                del added[sequence]
            else:
                assert len(driver.plans) - added[sequence] <= bound
    driver.drain()
