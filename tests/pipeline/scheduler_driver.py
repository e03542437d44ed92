"""Drives a scheduler as the engine does, with a model of the stages that asserts each plan is possible."""

from __future__ import annotations

from collections import deque
from dataclasses import replace

from pipeline.pacing import Pacing
from pipeline.scheduler import DecodeBatch, Limits, Scheduler, StepPlan
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
        if isinstance(pacing, ChosenPacing):
            Pacing.__init__(pacing, bounds.stages)  # only here it is known how many there are
        self.scheduler = Scheduler(bounds, pacing)
        self.stages = StagesModel(bounds)
        self.flying: deque[StepPlan] = deque()
        self.budget: dict[int, int] = {}  # tokens still to make, of the live sequences
        self.queue: list[int] = []  # not yet on the stages, first come first
        self.plans: list[StepPlan] = []
        self.asked: dict[int, int] = {}  # prompt and output, of every sequence
        self.arrival: dict[int, int] = {}  # first id of a sequence that was preempted; else its own

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
        turns = [self.arrival.get(s, s) for s in admitted]
        next_turn = min((self.arrival.get(s, s) for s in waiting), default=1 << 30)
        assert max(turns, default=-1) < next_turn, "admitted out of turn"
        self.stages.apply(plan)
        self.flying.append(plan)
        self.plans.append(plan)
        return plan

    def absorb(self, seconds: tuple[float, ...] = ()) -> None:
        """`seconds`: of each stage and loop; by default a hundredth each."""
        bounds = self.scheduler.limits
        seconds = seconds or (0.01,) * bounds.stages * bounds.loops
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

    def observe_memory(self, used: float) -> None:
        """The step that was absorbed last used this part of a share; what has to go is preempted."""
        step = len(self.plans) - len(self.flying) - 1
        for sequence in self.scheduler.observe_memory(step, used, self.scheduler.running):
            self.preempt(sequence)

    def preempt(self, sequence: int) -> int:
        text, left = self.stages.texts[sequence], self.budget.pop(sequence)
        tokens = tuple(text) if text[0] >= 0 else ()
        successor = self.scheduler.preempt(sequence, len(text), left, tokens)
        self.stages.texts[successor] = list(text)
        self.stages.prompts[successor] = len(text)
        self.budget[successor] = left
        self.asked[successor] = self.asked[sequence]
        self.arrival[successor] = self.arrival.get(sequence, sequence)
        if sequence in self.queue:  # it has waited for a prefix
            self.queue.remove(sequence)
        others_waiting = self.scheduler.waiting - 1
        self.queue.insert(len(self.queue) - others_waiting, successor)
        return successor

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
