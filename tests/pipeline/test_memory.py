"""What gives way to a lack of memory, in which order, and how it comes back."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pipeline.memory import CALM, PATIENCE, Budget, MemoryWatch

WINDOW = 4


class Stages:
    """Uses memory for kept prefixes and running sequences, and for a while more when either changes."""

    def __init__(self, prefix_tokens: int, running: int) -> None:
        self.watch = MemoryWatch(prefix_tokens, running, WINDOW)
        self.prefix_tokens, self.running = prefix_tokens, running
        self.wanted = (prefix_tokens, running)
        self.step = 0
        self.copying = 0  # steps in which what changed is held twice

    def turn(self, used: float) -> Budget | None:
        budget = self.watch.observe(
            self.step, self.step + WINDOW, used, self.prefix_tokens, self.running
        )
        self.step += 1
        self.copying -= self.copying > 0
        if budget is not None:
            self.copying = 2 * WINDOW
            prefixes, running = self.wanted
            if budget.prefix_tokens is not None:
                prefixes = min(prefixes, budget.prefix_tokens)
            if budget.running is not None:
                running = min(running, budget.running)
            self.prefix_tokens, self.running = prefixes, running
        return budget

    def until_change(self, used: float) -> int:
        """Steps until the budget changes, this one included."""
        for steps in range(1, 10_000):
            if self.turn(used) is not None:
                return steps
        raise AssertionError("the budget never changes")


def test_enough_memory_changes_nothing() -> None:
    stages = Stages(100, 8)
    assert [stages.turn(used) for used in (0.1, 0.95, 1.0) * 50] == [None] * 150
    assert not stages.watch.budget.reduced


def test_single_steps_above_the_share_change_nothing() -> None:
    stages = Stages(100, 8)
    for _ in range(50):
        assert [stages.turn(used) for used in (1.5,) * WINDOW + (0.95,)] == [None] * (WINDOW + 1)


def test_prefixes_go_before_sequences() -> None:
    stages = Stages(100, 8)
    seen = []
    while stages.running == 8:
        stages.until_change(1.5)
        seen.append(stages.prefix_tokens)
    assert seen[:-1] == [50, 25, 12, 6, 3, 1, 0]
    assert stages.running == 6
    assert stages.watch.reductions == len(seen)


def test_steps_from_before_a_change_do_not_count() -> None:
    stages = Stages(100, 8)
    assert stages.until_change(1.5) == WINDOW + 1
    # In flight already, copying, and then as many as it takes.
    assert stages.until_change(1.5) >= 3 * WINDOW


def test_one_sequence_always_runs() -> None:
    stages = Stages(0, 5)
    for _ in range(500):
        stages.turn(3.0)
    assert stages.running == 1
    reductions = stages.watch.reductions
    for _ in range(100):
        stages.turn(3.0)
    assert stages.watch.reductions == reductions, "nothing was left to reduce"


def test_what_was_taken_comes_back_with_calm_only() -> None:
    stages = Stages(64, 8)
    for _ in range(300):
        stages.turn(2.0)
    low = stages.watch.budget
    for _ in range(10 * PATIENCE):
        stages.turn((CALM + 1) / 2)
    assert stages.watch.budget == low
    for _ in range(60 * PATIENCE):
        stages.turn(0.5)
    assert not stages.watch.budget.reduced


def test_what_is_too_much_again_comes_back_later_each_time() -> None:
    stages = Stages(0, 8)
    stages.until_change(1.5)
    waits = []
    for _ in range(4):
        waits.append(stages.until_change(0.5))
        stages.until_change(1.5)
    assert waits == sorted(set(waits))
    assert waits[-1] > 3 * waits[0]


@given(
    prefix_tokens=st.integers(0, 5000),
    running=st.integers(1, 100),
    weights=st.floats(0.0, 0.9),
    per_token=st.floats(0.0, 0.001),
    per_sequence=st.floats(0.0, 0.2),
)
def test_use_settles_within_the_share_where_one_sequence_fits(
    prefix_tokens: int, running: int, weights: float, per_token: float, per_sequence: float
) -> None:
    per_sequence = min(per_sequence, 1 - weights)
    stages = Stages(prefix_tokens, running)

    def held() -> float:
        return weights + per_token * stages.prefix_tokens + per_sequence * stages.running

    def used() -> float:
        # Groups are copied one after the other: each second step takes twice as much.
        return held() * (2 if stages.copying % 2 else 1)

    for _ in range(1000):
        stages.turn(used())
    over = 0
    for _ in range(2000):
        over += held() > 1
        stages.turn(used())
        assert 1 <= stages.running <= running
        assert 0 <= stages.prefix_tokens <= prefix_tokens
    assert over <= 2000 / PATIENCE * 4 * WINDOW, "more than what trying for more costs"


def test_copies_shrink_nothing_by_themselves() -> None:
    """What leaves is held twice while it leaves: no reason to let more leave."""
    stages = Stages(0, 8)
    stages.until_change(1.2)
    for _ in range(200):
        stages.turn(1.9 if stages.copying % 2 else 0.95)
    assert stages.running == 6
