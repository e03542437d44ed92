"""How many prompt tokens go through the stages at a time, so that a prompt is through all of them soonest.

A chunk of c tokens behind o others takes a stage

    f + p * c + q * c * (o + c / 2)

seconds: f for going through the weights and for the step itself, p for each token, and q for each token that
one attends to.  All but f is work: however a prompt is cut, it adds up to the same w seconds.  n chunks have
left the last of S equal stages after

    n * f + w + (S - 1) * longest chunk

seconds.  So they are to take equal times, which makes them shorter along the prompt, and sqrt((S - 1) * w / f)
of them are best: with fewer the stages wait for the first one to come and the last one to go, with more f is
paid more often.  Where chunks take turns with decode steps, these are paid for each chunk too, and count with
f.  Pure.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, combinations
from math import ceil, floor, sqrt

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float64]

MULTIPLE = 16  # of tokens: matrix kernels work on tiles
FIXED_TOKENS = 16.0  # f / p, in tokens, as long as all chunks measured have one size
LARGEST_FIXED = 4096.0  # tokens; what is above it makes no difference
LEAST_SECONDS = 1e-12  # p
MOST_ATTENTION = 1 / 128  # q / p: above that of any model
UNSEEN_PAIRS = 16.0 * 1024  # what chunks have to go beyond, in pairs of tokens, for q to show
PRIOR = 0.05  # weight of these, against everything measured
STEP = 0.25  # weight of decode steps, as if so many chunks had been one token; times vary in proportion
STEP_MEMORY = 0.9  # weight of what was known before each of them
STEP_OUTLIER = 1.1  # one counts as at most so many times what was known: the least is looked for
MEMORY = 0.95  # weight of what was known before each chunk
OUTLIER = 2.0  # a chunk counts as at most so many times what was expected: machines pause
EXPECTED = 4.0  # chunks from which on something is expected
ROUNDING = 1e-9  # by which what a formula gives and what its inverse gives may differ
HALVINGS = 8  # of the interval in which the shortest longest chunk is sought


def pairs(start: int, tokens: int) -> float:
    """How many times a token of a chunk attends to one, if `start` tokens are before it."""
    return tokens * (start + tokens / 2)


@dataclass(frozen=True)
class Cost:
    """Of a chunk in the slowest stage: f, p and q, in seconds.  p is above 0."""

    fixed: float
    token: float
    pair: float = 0.0

    def work(self, start: int, tokens: int) -> float:
        """All but f."""
        return self.token * tokens + self.pair * pairs(start, tokens)

    def tokens(self, work: float, start: int) -> float:
        """How many behind `start` others have so much work."""
        each = self.token + self.pair * start
        return 2 * work / (each + sqrt(each * each + 2 * self.pair * work))

    @property
    def attention(self) -> float:
        """q / p: the work for a pair, as a share of the work for a token."""
        return self.pair / self.token


class ChunkSizes:
    """Measures chunks of any size, and says which sizes are best."""

    def __init__(self, stages: int) -> None:
        self.stages = stages
        # Decaying sums over chunks: products of 1, tokens and pairs with each other, and with seconds.
        self._products = np.zeros((3, 3))
        self._seconds = np.zeros(3)
        # Running means over decode steps of one sequence: seconds, and tokens before it.
        self._step: tuple[float, float] | None = None
        self._steps = 0
        self._cost: Cost | None = None  # None: to be found

    def observe(self, tokens: int, seconds: float, attended: float = 0.0) -> None:
        """The slowest stage took `seconds` for a chunk of `tokens`, `attended` as `pairs` counts."""
        sizes = np.array([1.0, tokens, attended])
        if self._products[0, 0] >= EXPECTED:
            cost = self.cost
            expected = cost.fixed + cost.token * tokens + cost.pair * attended
            seconds = min(seconds, OUTLIER * expected)
        self._products = MEMORY * self._products + np.outer(sizes, sizes)
        self._seconds = MEMORY * self._seconds + seconds * sizes
        self._cost = None

    def observe_step(self, seconds: float, attended: float) -> None:
        """A decode step of one sequence, behind `attended` tokens, took the slowest stage `seconds`.

        The first one is not counted: it compiles.
        """
        self._steps += 1
        if self._steps == 1:
            return
        before, attended_before = self._step or (seconds, attended)
        seconds = min(seconds, STEP_OUTLIER * before)
        self._step = (
            before + (1 - STEP_MEMORY) * (seconds - before),
            attended_before + (1 - STEP_MEMORY) * (attended - attended_before),
        )
        self._cost = None

    @property
    def measured(self) -> bool:
        """Whether costs are in seconds."""
        return bool(self._seconds[0])

    @property
    def cost(self) -> Cost:
        """As measured; before that, in tokens instead of seconds."""
        if self._cost is None:
            self._cost = self._fit()
        return self._cost

    def _fit(self) -> Cost:
        """Least squares without negative parts.

        A ridge pulls f towards FIXED_TOKENS * p, as chunks of one size don't tell, and q towards 0, as short
        prompts don't.  Chunks of one time, as they are made here, don't tell either: what they leave open is f.
        Then a chunk of one token takes at least what a decode step of one sequence does.
        """
        if not self.measured:
            return Cost(FIXED_TOKENS, 1.0)
        usual = np.array([1.0, -FIXED_TOKENS, 0.0])
        unseen = np.array([0.0, 0.0, UNSEEN_PAIRS])
        ridge = np.outer(usual, usual) + np.outer(unseen, unseen)
        products = self._products + PRIOR * self._products[0, 0] * ridge
        found = _least_squares(products, self._seconds)
        if self._step is not None and self._step[0] > 0:
            took, attended = self._step
            sizes = np.array([1.0, 1.0, attended])
            if sizes @ found < took:
                # As many as STEP says, each as much more exact as it is shorter than a chunk.
                weight = STEP * self._seconds[0] ** 2 / self._products[0, 0] / took**2
                products = products + weight * np.outer(sizes, sizes)
                found = _least_squares(products, self._seconds + weight * took * sizes)
        fixed, token, pair = found
        # A larger chunk may take no longer than a small one: as if there was a little for each token.
        token = max(token, fixed / LARGEST_FIXED, LEAST_SECONDS)
        return Cost(fixed, token, min(pair, MOST_ATTENTION * token))

    def fixed_tokens(self) -> float:
        """f / p: the tokens that take as long as a chunk does beside its tokens."""
        return self.cost.fixed / self.cost.token

    def best(
        self, start: int, end: int, most: int, others: float = 0.0, beside: float = 0.0
    ) -> int:
        """Tokens that the next step may take, at most `most`, where [start, end) is left of a prompt.

        If that is all of it, others may come along.  `others`: work of other prompts, and of this one so far;
        `beside`: seconds for each chunk that are not of prefill.
        """
        if self.stages == 1 or most <= MULTIPLE:
            return most
        cost = self.cost
        if self.measured:
            cost = replace(cost, fixed=cost.fixed + beside)
        sizes = cut(cost, self.stages, start, end, most, others)
        if len(sizes) > 1:
            return sizes[0]
        work = cost.work(start, end - start) + others
        share = cost.tokens(work / best_count(cost, self.stages, start, work), start)
        return min(most, max(end - start, ceil(share / MULTIPLE) * MULTIPLE))


def best_count(cost: Cost, stages: int, start: int, work: float) -> float:
    """Into how many chunks `work` is best divided, the first one behind `start` tokens."""
    most = work / cost.work(start, MULTIPLE)
    return max(1.0, min(most, sqrt(work * (stages - 1) / cost.fixed)) if cost.fixed else most)


def cut(
    cost: Cost, stages: int, start: int, end: int, most: int, others: float = 0.0
) -> tuple[int, ...]:
    """Sizes of the chunks that bring [start, end) of a prompt through the stages soonest; `others` as above.

    No size is above `most`; all but the last one are multiples of MULTIPLE, where `most` allows that.  By
    `cost`, chunks of one size are never faster.
    """
    most = most // MULTIPLE * MULTIPLE or most
    own = cost.work(start, end - start)
    count = best_count(cost, stages, start, own + others) * own / (own + others)
    works = [_least_work(cost, start, end, most, max(1, n)) for n in {floor(count), ceil(count)}]
    works.append(_work_of_one_size(cost, stages, start, end, most, others))
    plans = [_within(cost, start, end, most, work) for work in works]
    return min(plans, key=lambda sizes: delay(cost, stages, start, sizes, others))


def delay(cost: Cost, stages: int, start: int, sizes: Sequence[int], others: float = 0.0) -> float:
    """Seconds until chunks of these sizes have left the last stage, beside all work, which is the same."""
    starts = accumulate(sizes, initial=start)
    work = max(cost.work(at, size) for at, size in zip(starts, sizes, strict=False))
    return _delay(cost, stages, len(sizes), work, others)


def _delay(cost: Cost, stages: int, count: int, work: float, others: float) -> float:
    """`count` chunks with at most so much work each, and others that have as much."""
    return (count + others / work) * cost.fixed + (stages - 1) * (cost.fixed + work)


def _within(cost: Cost, start: int, end: int, most: int, work: float) -> tuple[int, ...]:
    """The fewest chunks with at most so much work each, or MULTIPLE tokens."""
    sizes = []
    while start < end:
        size = min(most, max(MULTIPLE, int(cost.tokens(work, start) * (1 + ROUNDING))))
        size = end - start if size >= end - start else size // MULTIPLE * MULTIPLE or size
        sizes.append(size)
        start += size
    return tuple(sizes)


def _least_work(cost: Cost, start: int, end: int, most: int, count: int) -> float:
    """The least that a chunk may have for `count` chunks to be enough; more if `most` does not allow so few."""
    own, rounding = cost.work(start, end - start), cost.work(end, MULTIPLE)
    count = max(count, len(_within(cost, start, end, most, own / count + rounding)))
    low, high = own / count, own / count + rounding
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        if len(_within(cost, start, end, most, middle)) <= count:
            high = middle
        else:
            low = middle
    return high


def _work_of_one_size(
    cost: Cost, stages: int, start: int, end: int, most: int, others: float
) -> float:
    """The most that a chunk has where all but the last one have the best size."""

    def candidate(size: int) -> tuple[float, float]:
        whole, last = divmod(end - start, size)
        work = cost.work(start + whole * size, last)
        if whole:
            work = max(work, cost.work(start + (whole - 1) * size, size))
        return _delay(cost, stages, whole + bool(last), work, others), work

    smallest = min(MULTIPLE, most)
    return min(map(candidate, range(smallest, most + 1, smallest)))[1]


def _least_squares(products: Matrix, right: Matrix) -> tuple[float, ...]:
    """The non-negative x with the least x @ products @ x - 2 * right @ x, for few unknowns.

    There some unknowns are 0, and the others are the solution without these.
    """
    scale = 1 / np.sqrt(np.diag(products))  # of units that have nothing to do with each other
    scaled, aim = products * np.outer(scale, scale), scale * right
    best, found = 0.0, np.zeros(len(right))
    for count in range(len(right), 0, -1):
        for chosen in map(list, combinations(range(len(right)), count)):
            x = np.zeros(len(right))
            x[chosen] = np.linalg.solve(scaled[np.ix_(chosen, chosen)], aim[chosen])
            value = float(x @ scaled @ x - 2 * aim @ x)
            if value < best and (x >= 0).all():
                best, found = value, x
        if count == len(right) and best < 0:  # with no unknown at its limit, there is no better one
            break
    return tuple(map(float, scale * found))
