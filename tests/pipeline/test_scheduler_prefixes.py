"""Prompts that share prefixes: the scheduler against the model of the stages, which knows every token."""

from __future__ import annotations

import random

import pytest

from pipeline.prefixes import BLOCK
from pipeline.scheduler import PrefillBatch
from pipeline.steps import Admitted
from tests.pipeline.scheduler_driver import ChosenPacing, Driver, limits

STEM = [i % 7 for i in range(40)]


def driver(**changes: int | None) -> Driver:
    return Driver(limits(**{"prefix_tokens": 1000, **changes}), ChosenPacing(1))


def prefilled(driver: Driver, sequence: int) -> int:
    """Tokens handed out in chunks."""
    batches = [plan.work for plan in driver.plans if isinstance(plan.work, PrefillBatch)]
    chunks = [chunk for batch in batches for chunk in batch.chunks]
    return sum(chunk.tokens for chunk in chunks if chunk.sequence == sequence)


def admissions(driver: Driver) -> dict[int, Admitted]:
    return {a.sequence: a for plan in driver.plans for a in plan.admitted}


def settle(driver: Driver) -> None:
    """Serve what was added, and keep what is kept."""
    while not driver.scheduler.idle:
        driver.turn()


@pytest.mark.parametrize("seed", range(80))
def test_long_walks_of_chats_keep_the_stages_in_step(seed: int) -> None:
    r = random.Random(seed)
    walk = Driver(
        limits(
            stages=r.randint(1, 3),
            max_group=r.choice([1, 2, 8]),
            prefill_chunk=r.choice([4, 9, 32]),
            max_running=r.choice([2, 8]),
            kv_tokens=r.choice([None, 130, 260]),
            prefix_tokens=r.choice([60, 150, 2000]),
            prefix_sequences=r.choice([2, 100]),
            cut_limit=r.choice([None, 0, 30]),
        ),
        ChosenPacing(r.randint(1, 3)),
    )
    stems = [[r.randint(0, 5) for _ in range(r.choice([3, 20, 50]))] for _ in range(3)]
    chats: list[list[int]] = []
    for _ in range(300):
        event = r.random()
        if event < 0.25 and len(walk.budget) < 16:
            old = [t for t in walk.stages.texts.values() if t[0] >= 0 and len(t) < 70]
            chats = [
                *stems,
                *stems,
                *(t[: r.choice([len(t), len(t), r.randint(1, len(t))])] for t in old[-6:]),
            ]
            prompt = r.choice(chats) + [r.randint(0, 5) for _ in range(r.choice([0, 1, 4]))]
            for _ in range(min(r.choice([1, 1, 2, 3]), 16 - len(walk.budget))):
                walk.add(prompt, r.randint(1, 9))
        elif event < 0.29 and walk.budget:
            walk.finish(r.choice(sorted(walk.budget)))
        elif event < 0.30:
            walk.scheduler.drop_prefixes(r.choice([0, 50]))
        elif event < 0.65:
            walk.choose()
        elif walk.flying:
            walk.absorb()
        walk.scheduler.check()
        fits = walk.scheduler.limits.kv_tokens
        if fits is not None:
            kept, held = walk.stages.retained, walk.stages.contents
            assert sum(len(held[s]) if s in kept else walk.asked[s] for s in held) <= fits
    walk.drain()


def test_the_walks_take_every_turn() -> None:
    """Guards the walk above: without copies from all kinds of sources it would prove nothing."""
    seen = {"running": 0, "kept": 0, "released at once": 0, "snapshot": 0}
    original = Driver.choose

    def watched(self: Driver) -> object:
        plan = original(self)
        for admitted in plan.admitted if plan else ():
            if plan is None or admitted.source is None:
                continue
            seen["running" if admitted.source in self.budget else "kept"] += 1
            seen["released at once"] += admitted.source in plan.released
            seen["snapshot"] += admitted.sequence in plan.retained
        return plan

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Driver, "choose", watched)
        for seed in range(40):
            test_long_walks_of_chats_keep_the_stages_in_step(seed)
    assert min(seen.values()) >= 10, seen


def test_the_next_turn_of_a_chat_prefills_only_what_is_new() -> None:
    chat = driver()
    first = chat.add(STEM, max_tokens=6)
    settle(chat)
    said = chat.stages.texts[first]
    second = chat.add([*said, 1, 2, 3])
    settle(chat)
    assert admissions(chat)[second] == Admitted(second, first, len(said) - 1)
    assert prefilled(chat, second) == 3
    assert chat.scheduler.prefixes.kept == (second,)  # all of the first one is in it
    stats = chat.scheduler.prefixes.stats
    assert (stats.queries, stats.hits, stats.hit_tokens) == (2, 1, len(said) - 1)
    assert (stats.sequences, stats.tokens) == (1, len(said) + 3 + 4)
    chat.drain()


@pytest.mark.parametrize("cut_limit", [None, 0, 30, 60])
def test_two_identical_prompts_share_one_prefill(cut_limit: int | None) -> None:
    twins = driver(cut_limit=cut_limit)
    sequences = [twins.add(STEM) for _ in range(3)]
    settle(twins)
    assert sum(prefilled(twins, s) for s in sequences) == len(STEM) - 1
    assert [admissions(twins)[s].length for s in sequences] == [0, 39, 39]
    twins.drain()


def test_who_waits_for_a_prefix_does_not_hold_up_others() -> None:
    queue = driver(prefill_chunk=4)
    queue.add(STEM), queue.add(STEM)
    other = queue.add([9] * 5)
    for _ in range(4):
        queue.choose()
    assert other in queue.stages.held
    queue.drain()


@pytest.mark.parametrize(("cut_limit", "copied"), [(None, 20), (0, 20)])
def test_whoever_waits_for_one_that_is_cancelled_takes_what_is_there(
    cut_limit: int | None, copied: int
) -> None:
    orphan = driver(prefill_chunk=4, cut_limit=cut_limit)
    first, second, third = (orphan.add(STEM) for _ in range(3))
    for _ in range(5):
        orphan.choose()
    orphan.finish(first)
    settle(orphan)
    assert admissions(orphan)[second] == Admitted(second, first, copied)
    assert admissions(orphan)[third].length == len(STEM) - 1
    assert prefilled(orphan, second) == len(STEM) - 1 - copied
    orphan.drain()


def test_one_that_waits_can_be_cancelled_unheard_of() -> None:
    orphan = driver()
    first, second = orphan.add(STEM), orphan.add(STEM)
    orphan.choose()
    orphan.finish(second)
    settle(orphan)
    assert list(admissions(orphan)) == [first]
    orphan.drain()


def test_a_prefix_that_cannot_be_cut_is_a_miss_unless_it_is_whole() -> None:
    state = driver(cut_limit=0)
    first = state.add(STEM)
    settle(state)
    other = state.add([*STEM[:30], 9, 9])  # shares 30 tokens, at no end of any content
    again = state.add([*STEM, 9])  # one more than the snapshot and the prompt's last token
    further = state.add([*state.stages.texts[first], 8])
    settle(state)
    assert admissions(state)[other].source is None
    assert admissions(state)[again].length == len(STEM) - 1
    assert admissions(state)[further].length == len(state.stages.texts[first]) - 1
    state.drain()


def test_a_window_that_has_not_lost_anything_is_cut() -> None:
    window = driver(cut_limit=60)
    window.add(STEM)
    settle(window)
    other = window.add([*STEM[:30], 9, 9])
    settle(window)
    assert admissions(window)[other].length == 30
    assert all(not plan.retained or not plan.admitted for plan in window.plans), (
        "no snapshot needed"
    )
    window.drain()


def test_running_ones_come_before_kept_ones_and_the_oldest_go_first() -> None:
    tight = driver(kv_tokens=100)
    a, b = (tight.add([n] * 30, 1) for n in (1, 2))
    settle(tight)
    assert tight.scheduler.prefixes.kept == (a, b)
    again = tight.add([1] * 30, 1)  # uses a; nothing has to go for 31 + 60 tokens
    settle(tight)
    assert tight.scheduler.prefixes.kept == (b, a)
    assert admissions(tight)[again].source == a
    tight.add([3] * 30, 20)
    tight.turn()
    assert tight.scheduler.prefixes.kept == (a,)
    tight.drain()


def test_a_prompt_takes_over_the_caches_that_leave_it_no_room() -> None:
    tight = driver(kv_tokens=60)
    first = tight.add(STEM, 1)
    settle(tight)
    second = tight.add(STEM, 20)
    plan = tight.choose()
    assert plan is not None
    assert plan.admitted == (Admitted(second, first, len(STEM) - 1),)
    assert plan.released == (first,)
    tight.drain()


def test_prefixes_shorter_than_a_block_are_not_worth_a_copy() -> None:
    short = driver()
    short.add(STEM[: BLOCK - 1])
    settle(short)
    other = short.add(STEM)
    settle(short)
    assert admissions(short)[other].source is None
    short.drain()


def test_without_a_prefix_cache_nothing_is_shared_or_kept() -> None:
    plain = driver(prefix_tokens=0)
    sequences = [plain.add(STEM), plain.add(STEM)]
    settle(plain)
    assert [prefilled(plain, s) for s in sequences] == [len(STEM) - 1] * 2
    assert not plain.stages.held
    assert not any(plan.retained for plan in plain.plans)
