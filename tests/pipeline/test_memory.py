"""What gives way to a lack of memory, in which order, and how it comes back."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pipeline.memory import CALM, PATIENCE, Budget, MemoryWatch


class Stages:
    """Uses memory for kept prefixes and running sequences; a change shows after `delay` steps."""

    def __init__(self, prefix_tokens: int, running: int, delay: int = 3) -> None:
        self.watch = MemoryWatch(prefix_tokens, running)
        self.prefix_tokens, self.running = prefix_tokens, running
        self.wanted = (prefix_tokens, running)
        self.delay = delay
        self.step = 0

    def turn(self, used: float) -> Budget | None:
        budget = self.watch.observe(
            self.step, self.step + self.delay, used, self.prefix_tokens, self.running
        )
        self.step += 1
        if budget is not None:
            prefixes, running = self.wanted
            if budget.prefix_tokens is not None:
                prefixes = min(prefixes, budget.prefix_tokens)
            if budget.running is not None:
                running = min(running, budget.running)
            self.prefix_tokens, self.running = prefixes, running
        return budget


def test_enough_memory_changes_nothing() -> None:
    stages = Stages(100, 8)
    assert [stages.turn(used) for used in (0.1, 0.95, 1.0)] == [None] * 3
    assert not stages.watch.budget.reduced


def test_prefixes_go_before_sequences() -> None:
    stages = Stages(100, 8, delay=1)
    seen = []
    while stages.running == 8:
        stages.turn(1.5)
        seen.append(stages.prefix_tokens)
    assert seen[:-1] == [50, 25, 12, 6, 3, 1, 0]
    assert stages.running == 6
    assert stages.watch.reductions == len(seen)


def test_steps_from_before_a_change_do_not_count() -> None:
    stages = Stages(100, 8, delay=4)
    assert stages.turn(1.5) is not None
    assert [stages.turn(1.5) for _ in range(3)] == [None] * 3
    assert stages.turn(1.5) is not None


def test_one_sequence_always_runs() -> None:
    stages = Stages(0, 5, delay=1)
    for _ in range(100):
        stages.turn(3.0)
    assert stages.running == 1
    reductions = stages.watch.reductions
    stages.turn(3.0)
    assert stages.watch.reductions == reductions, "nothing was left to reduce"


def test_what_was_taken_comes_back_with_calm_only() -> None:
    stages = Stages(64, 8, delay=1)
    for _ in range(40):
        stages.turn(2.0)
    low = stages.watch.budget
    for _ in range(10 * PATIENCE):
        stages.turn((CALM + 1) / 2)
    assert stages.watch.budget == low
    for _ in range(60 * PATIENCE):
        stages.turn(0.5)
    assert not stages.watch.budget.reduced


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

    def used() -> float:
        return weights + per_token * stages.prefix_tokens + per_sequence * stages.running

    for _ in range(400):
        stages.turn(used())
    over = 0
    for _ in range(1000):
        over += used() > 1
        stages.turn(used())
        assert 1 <= stages.running <= running
        assert 0 <= stages.prefix_tokens <= prefix_tokens
    assert over <= 1000 / PATIENCE * (stages.delay + 1), "more than what trying for more costs"
