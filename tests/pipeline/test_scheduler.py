"""The scheduler against a model of the stages, in any order of arrivals, results, ends and cancellations."""

from __future__ import annotations

import random
from collections import deque
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from pipeline.errors import ContextTooLong, QueueFull
from pipeline.pacing import Pacing
from pipeline.scheduler import DecodeBatch, Limits, PrefillChunk, Scheduler, StepPlan
from pipeline.steps import Admitted
from tests.pipeline.stages_model import StagesModel


class ChosenPacing(Pacing):
    """Wants as many groups as the test says."""

    def __init__(self, wanted: int) -> None:
        super().__init__(stages=1)
        self.wanted = wanted

    def groups(self, sequences: int) -> int:
        return max(1, min(self.wanted, sequences))


def limits(**changes: int | None) -> Limits:
    base = Limits(stages=3, max_requests=16, max_running=8, max_group=8, prefill_chunk=4)
    return replace(base, **changes)  # type: ignore[arg-type]


class Driver:
    """A ring: steps leave the last stage in the order in which they were chosen."""

    def __init__(self, bounds: Limits, pacing: Pacing | None = None) -> None:
        self.scheduler = Scheduler(bounds, pacing)
        self.stages = StagesModel(bounds)
        self.flying: deque[StepPlan] = deque()
        self.budget: dict[int, int] = {}  # tokens still to make, of the live sequences
        self.queue: list[int] = []  # not yet on the stages, first come first
        self.plans: list[StepPlan] = []
        self.asked: dict[int, int] = {}  # prompt and output, of every sequence

    def add(self, prompt: int | list[int], max_tokens: int = 5) -> int:
        """Only a prompt whose tokens are given may share a prefix."""
        sequence = self.scheduler.take_id()
        tokens = prompt if isinstance(prompt, list) else []
        length = len(tokens) or int(prompt)  # type: ignore[arg-type]
        self.scheduler.add(sequence, length, max_tokens, tuple(tokens))
        self.stages.prompts[sequence] = length
        self.stages.texts[sequence] = list(tokens) or [-1 - sequence] * length
        self.budget[sequence] = max_tokens
        self.asked[sequence] = length + max_tokens
        self.queue.append(sequence)
        return sequence

    def finish(self, sequence: int) -> None:
        self.budget.pop(sequence, None)
        if sequence in self.queue:
            self.queue.remove(sequence)
        text = self.stages.texts.get(sequence, [-1])
        self.scheduler.finish(sequence, tuple(text) if text[0] >= 0 else ())

    def choose(self) -> StepPlan | None:
        plan = self.scheduler.choose()
        if plan is None:
            return None
        assert plan.id == len(self.plans)
        admitted = [a.sequence for a in plan.admitted if a.sequence not in plan.retained]
        assert len(set(admitted)) == len(admitted)
        self.queue = [s for s in self.queue if s not in admitted]
        waiting = self.queue[len(self.queue) - self.scheduler.waiting :]
        assert max(admitted, default=-1) < min(waiting, default=1 << 30), "admitted out of turn"
        self.stages.apply(plan)
        self.flying.append(plan)
        self.plans.append(plan)
        return plan

    def absorb(self, seconds: tuple[float, ...] = ()) -> None:
        plan = self.scheduler.absorb(self.flying[0].id, seconds)
        assert plan is self.flying.popleft()
        self.stages.absorb(plan)
        if isinstance(plan.work, DecodeBatch):
            for sequence in plan.work.sequences:
                if sequence in self.budget:
                    self.stages.texts[sequence].append(self.answer(sequence))
                    self.budget[sequence] -= 1
                    if not self.budget[sequence]:
                        self.finish(sequence)

    def answer(self, sequence: int) -> int:
        """The next token: the same for the same text."""
        text = self.stages.texts[sequence]
        return -1 if text[0] < 0 else (text[-1] + len(text)) % 5

    def turn(self) -> None:
        """As the engine's loop: choose while there is room, then take one result."""
        while self.choose() is not None:
            pass
        if self.flying:
            self.absorb()

    def drain(self) -> None:
        for _ in range(5000):
            if self.scheduler.idle:
                break
            self.turn()
        assert self.scheduler.idle
        assert not self.budget, f"{self.budget} were never served"
        kept = self.scheduler.prefixes.kept
        assert set(self.stages.held) == self.stages.retained == set(kept), "caches are left"
        assert self.scheduler.prefixes.tokens <= self.scheduler.limits.prefix_tokens
        if kept:
            self.scheduler.drop_prefixes()
            assert self.choose() is not None
            self.absorb()
            assert not self.stages.held, "caches are left"
        assert self.scheduler.choose() is None
        assert not any(self.scheduler.groups)


class SchedulerMachine(RuleBasedStateMachine):
    driver: Driver
    pacing: ChosenPacing

    @initialize(
        stages=st.integers(1, 4),
        max_running=st.integers(1, 8),
        max_group=st.sampled_from([1, 2, 3, 8]),
        prefill_chunk=st.integers(1, 4),
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
        self.largest = self.bounds.max_group

    @rule(prompt=st.integers(1, 12), max_tokens=st.integers(1, 20))
    def add(self, prompt: int | list[int], max_tokens: int) -> None:
        if len(self.driver.budget) >= self.bounds.max_requests:
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

    @rule(max_group=st.integers(1, 8), prefill_chunk=st.integers(1, 4))
    def configure(self, max_group: int, prefill_chunk: int) -> None:
        """max_batch_size and prefill_chunk_tokens may change while running."""
        self.largest = max(self.largest, max_group)
        scheduler = self.driver.scheduler
        scheduler.limits = replace(
            scheduler.limits, max_group=max_group, prefill_chunk=prefill_chunk
        )
        self.driver.stages.limits = scheduler.limits

    @invariant()
    def sound(self) -> None:
        scheduler, live = self.driver.scheduler, set(self.driver.budget)
        scheduler.check()
        assert scheduler.in_flight == len(self.driver.flying) <= self.bounds.window
        assert scheduler.running + scheduler.waiting == len(live)
        assert scheduler.running <= self.bounds.max_running
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


@pytest.mark.parametrize("stages", [1, 2, 4])
@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("patience", [1, 3, 8])
def test_a_long_prompt_delays_a_stream_by_as_many_chunks_as_stages(
    stages: int, groups: int, patience: int
) -> None:
    """Chunks between two steps of one stream; `patience`: results are taken after so many choices."""
    driver = Driver(limits(stages=stages), ChosenPacing(groups))
    streams = [driver.add(1, 1000) for _ in range(4)]
    for _ in range(20):
        driver.turn()
    long = [driver.add(400, 1), driver.add(400, 1)]
    first = len(driver.plans)
    while any(sequence in driver.budget for sequence in long):
        for _ in range(patience):
            driver.choose()
        driver.absorb()
    for stream in streams:
        chunks = worst = 0
        for plan in driver.plans[first:]:
            if isinstance(plan.work, PrefillChunk):
                chunks += 1
            elif isinstance(plan.work, DecodeBatch) and stream in plan.work.sequences:
                worst, chunks = max(worst, chunks), 0
        assert 1 <= worst <= stages + 1


def test_an_idle_pipeline_takes_one_prompt_into_all_stages_at_once() -> None:
    driver = Driver(limits(stages=3, prefill_chunk=4))
    driver.add(prompt=21)
    chunks = [plan.work for plan in iter(driver.choose, None)]
    assert chunks[:5] == [PrefillChunk(0, start, start + 4) for start in range(0, 20, 4)]
    assert chunks[5] == DecodeBatch(
        0, (0,)
    )  # needs no result: the last token of the prompt is known


def test_groups_fill_the_stages() -> None:
    driver = Driver(limits(stages=3), ChosenPacing(3))
    for _ in range(6):
        driver.add(prompt=1, max_tokens=100)
    for _ in range(20):
        driver.turn()
    while driver.choose() is not None:
        pass
    batches = [plan.work for plan in driver.flying]
    assert sorted(len(batch.sequences) for batch in batches if batch) == [2, 2, 2]


@pytest.mark.parametrize(
    ("before", "after", "sizes"), [(1, 3, [3, 3, 2]), (3, 1, [8]), (4, 2, [4, 4])]
)
def test_running_groups_follow_the_pacing(before: int, after: int, sizes: list[int]) -> None:
    pacing = ChosenPacing(before)
    driver = Driver(limits(stages=4), pacing)
    for _ in range(8):
        driver.add(prompt=1, max_tokens=100)
    for _ in range(20):
        driver.turn()
    pacing.wanted = after
    for _ in range(40):
        driver.turn()
    assert sorted(map(len, filter(None, driver.scheduler.groups)), reverse=True) == sizes


def test_groups_are_levelled_when_one_loses_members() -> None:
    driver = Driver(limits(stages=2), ChosenPacing(2))
    for _ in range(8):
        driver.add(prompt=1, max_tokens=100)
    for _ in range(20):
        driver.turn()
    for sequence in driver.scheduler.groups[0][:3]:
        driver.finish(sequence)
    for _ in range(20):
        driver.turn()
    assert sorted(map(len, driver.scheduler.groups)) == [2, 3]


def test_a_newcomer_does_not_wait_for_the_step_of_one_that_was_cancelled() -> None:
    driver = Driver(limits(stages=2), ChosenPacing(2))
    first = driver.add(prompt=1)
    driver.choose()
    driver.finish(first)
    second = driver.add(prompt=1)
    plan = driver.choose()
    assert plan is not None
    assert plan.work == DecodeBatch(1, (second,))


def test_memory_is_counted_for_all_that_are_admitted_together() -> None:
    driver = Driver(limits(kv_tokens=20))
    first, _ = driver.add(prompt=5, max_tokens=6), driver.add(prompt=5, max_tokens=6)
    plan = driver.choose()
    assert plan is not None
    assert plan.admitted == (Admitted(first),)


def test_a_model_that_loops_has_one_step_in_flight_and_one_group() -> None:
    driver = Driver(limits(stages=3, loops=2), ChosenPacing(3))
    for _ in range(4):
        driver.add(prompt=6, max_tokens=50)
    for _ in range(20):
        driver.turn()
    assert driver.choose() is not None
    assert driver.choose() is None
    assert [len(group) for group in driver.scheduler.groups if group] == [4]


def test_one_token_each_where_the_architecture_cannot_batch() -> None:
    driver = Driver(limits(max_group=1), ChosenPacing(1))
    for _ in range(5):
        driver.add(prompt=3)
    driver.drain()
    assert all(
        len(plan.work.sequences) == 1 for plan in driver.plans if isinstance(plan.work, DecodeBatch)
    )


def test_smaller_groups_are_reached_after_a_change_while_running() -> None:
    driver = Driver(limits(), ChosenPacing(1))
    for _ in range(8):
        driver.add(prompt=1, max_tokens=200)
    for _ in range(5):
        driver.turn()
    driver.scheduler.limits = replace(driver.scheduler.limits, max_group=2)
    for _ in range(60):
        driver.turn()
    assert [len(group) for group in driver.scheduler.groups if group] == [2, 2, 2, 2]


def test_cancelled_before_the_stages_have_heard_of_it() -> None:
    """A full turn admits nobody; a cancellation in the queue leaves no trace in any step."""
    driver = Driver(limits(max_running=1))
    first, second = driver.add(prompt=3), driver.add(prompt=3)
    driver.choose()
    driver.finish(second)
    driver.drain()
    assert [a.sequence for plan in driver.plans for a in plan.admitted] == [first]
    assert [s for plan in driver.plans for s in plan.released] == [first]


def test_a_released_sequence_makes_room_in_the_same_step() -> None:
    driver = Driver(limits(max_running=1, kv_tokens=10))
    first, second = driver.add(prompt=5), driver.add(prompt=5)
    driver.choose()
    driver.finish(first)
    plan = driver.choose()
    assert plan is not None
    assert (plan.released, plan.admitted) == ((first,), (Admitted(second),))


def test_refusals() -> None:
    scheduler = Scheduler(limits(max_requests=2, context=50, kv_tokens=40))
    with pytest.raises(ContextTooLong, match=r"length is 50 tokens.* needs 51"):
        scheduler.add(0, 50, 1)
    with pytest.raises(ContextTooLong) as memory:
        scheduler.add(0, 40, 1)
    assert (memory.value.asked, memory.value.limit) == (41, 40)
    scheduler.add(0, 40, 0)
    scheduler.add(1, 1, 1)
    with pytest.raises(QueueFull):
        scheduler.add(2, 1, 1)
    with pytest.raises(KeyError):
        scheduler.absorb(0)


def test_large_requests_are_not_overtaken() -> None:
    driver = Driver(limits(kv_tokens=20))
    driver.add(prompt=5, max_tokens=10)
    large, small = driver.add(prompt=5, max_tokens=15), driver.add(prompt=1, max_tokens=1)
    driver.drain()
    order = [a.sequence for plan in driver.plans for a in plan.admitted]
    assert order.index(large) < order.index(small)


def test_a_short_prompt_overtakes_a_long_one() -> None:
    driver = Driver(limits(prefill_chunk=4))
    long, short = driver.add(prompt=101), driver.add(prompt=6)
    while short not in driver.stages.decoded:
        driver.turn()
    assert driver.stages.held[long] < 100


def test_step_times_reach_the_pacing() -> None:
    pacing = Pacing(stages=3)
    driver = Driver(limits(groups=1), pacing)
    for seconds in ((0.1, 0.2, 0.1), (0.1, 0.3, 0.1)):
        driver.add(prompt=1)
        for _ in range(2):  # the first step of a size does not count
            driver.choose()
            driver.absorb(seconds)
    assert pacing.fit() == pytest.approx((0.1, 0.1), rel=0.3)  # one sequence: 0.2 s, two: 0.3 s
