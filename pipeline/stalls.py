"""By how much prefill can delay the tokens of running streams: measured on chunks of any size.  Pure."""

from __future__ import annotations

CHUNK_MEMORY = 256  # tokens of prefill after which an observation counts half
OUTLIER = 2.0  # an observation counts as at most so many times the mean: machines pause


class Stalls:
    """Decaying sums over chunks.  A pair of tokens of which one attends to the other is part of a token."""

    def __init__(self, stages: int) -> None:
        self._stages = stages
        self._tokens = self._attended = 0.0
        self._seconds = 0.0  # as `longest_stall` counts
        self._slowest = 0.0  # seconds of the slowest stage

    def observe(
        self, tokens: int, seconds: tuple[float, ...], attended: float, attention: float
    ) -> None:
        """A chunk took `seconds` in each stage.  `attention`: the tokens that a pair counts as."""
        slowest, stall = max(seconds), longest_stall(seconds)
        rate = self.per_token(attention)
        if rate is not None and stall:
            usual = min(stall, OUTLIER * rate * (tokens + attention * attended))
            slowest, stall = slowest * usual / stall, usual
        weight = 0.5 ** (tokens / CHUNK_MEMORY)
        self._tokens = weight * self._tokens + tokens
        self._attended = weight * self._attended + attended
        self._seconds = weight * self._seconds + stall
        self._slowest = weight * self._slowest + slowest

    def per_token(self, attention: float) -> float | None:
        """Seconds by which each token of a chunk can delay a stream, attention aside; None: not measured."""
        if not self._tokens:
            return None
        return self._seconds / (self._tokens + attention * self._attended)

    def of(self, seconds: float) -> float:
        """By how much a chunk can delay a stream that takes `seconds` in the slowest stage."""
        if not self._slowest:
            return self._stages * seconds
        return seconds * self._seconds / self._slowest


def longest_stall(seconds: tuple[float, ...]) -> float:
    """By how much chunks that take `seconds` in each stage can delay a token of a running stream.

    Between two steps of a stream goes one chunk less than there are stages (Limits.chunks_between).  At worst
    the later step follows a chunk through all stages, in each of which others are in the way for as long as the
    slowest one takes; or it follows the last of these chunks, which all came into an idle pipeline at once, and
    which had to wait in the slowest stage for the others, for longer than they were in the first.
    """
    slowest, stages = max(seconds), len(seconds)
    queued = max(0, stages - 2) * (slowest - seconds[0])
    return max(stages * slowest, sum(seconds) + queued)
