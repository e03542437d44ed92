"""How many prompt tokens go through the stages at a time, so that a prompt is through all of them soonest.

A chunk of c tokens takes a stage f + p * c seconds: f for going through the weights and for the step itself,
p for each token.  A prompt of L tokens in L / c chunks has left the last of S stages after

    (L / c + S - 1) * (f + p * c)

seconds, which is least for c = sqrt(f * L / (p * (S - 1))): with larger chunks the stages wait for the first
one to come and the last one to go, with smaller ones f is paid more often.  Where chunks take turns with decode
steps, these are paid for each chunk too, and count with f.  Pure.
"""

from __future__ import annotations

from math import ceil, sqrt

MULTIPLE = 16  # of tokens: matrix kernels work on tiles
FIXED_TOKENS = 16.0  # f / p, in tokens, as long as all chunks measured have one size
LARGEST_FIXED = 4096.0  # tokens; what is above it makes no difference
PRIOR = 0.05  # weight of that, against everything measured
MEMORY = 0.95  # weight of what was known before each chunk


class ChunkSizes:
    """Measures chunks of any size, and says which size is best."""

    def __init__(self, stages: int) -> None:
        self.stages = stages
        # Decaying sums over chunks: of 1, tokens, tokens ** 2, seconds, tokens * seconds.
        self._sums: tuple[float, ...] = (0.0,) * 5

    def observe(self, tokens: int, seconds: float) -> None:
        """The slowest stage took `seconds` for a chunk of `tokens`."""
        fresh = (1.0, tokens, tokens**2, seconds, tokens * seconds)
        self._sums = tuple(MEMORY * old + new for old, new in zip(self._sums, fresh, strict=True))

    def fixed_tokens(self, beside: float = 0.0) -> float:
        """f / p: the tokens that take as long as a chunk does beside its tokens.

        `beside`: seconds of other work for each chunk.
        Least squares with a ridge that pulls f towards FIXED_TOKENS * p: chunks of one size don't tell.
        """
        count, tokens, squares, seconds, products = self._sums
        if not seconds:
            return FIXED_TOKENS
        ridge = PRIOR * count
        a, b, c = count + ridge, tokens - ridge * FIXED_TOKENS, squares + ridge * FIXED_TOKENS**2
        fixed = (c * seconds - b * products) / (a * c - b * b)
        per_token = (a * products - b * seconds) / (a * c - b * b)
        fixed = max(fixed, 0.0) + beside
        if per_token * LARGEST_FIXED <= fixed:  # a larger chunk takes no longer than a small one
            return LARGEST_FIXED
        return fixed / per_token

    def best(self, prompt: int, most: int, beside: float = 0.0) -> int:
        """Tokens of each chunk of `prompt` tokens, at most `most`; `beside` as above."""
        if self.stages == 1 or prompt <= MULTIPLE:
            return most
        fixed = self.fixed_tokens(beside)
        ideal = prompt / max(MULTIPLE, sqrt(fixed * prompt / (self.stages - 1)))  # chunks
        # All of one size: a short last one would pay f like the others.
        sizes = [ceil(prompt / n / MULTIPLE) * MULTIPLE for n in (max(1, int(ideal)), ceil(ideal))]
        return min(most, min(sizes, key=lambda size: self._seconds(prompt, size, fixed)))

    def _seconds(self, prompt: int, size: int, fixed: float) -> float:
        """Until `prompt` tokens have left the last stage, in units of p."""
        others = ceil(prompt / size) - 1
        return (others + self.stages - 1) * (fixed + size) + fixed + prompt - others * size
