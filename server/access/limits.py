"""What each key has used of what it may: requests and tokens in a minute, sequences at the same time.

Pure objects with the clock handed in, for one thread.  Tokens are reserved when a request starts, prompt and
longest output together, and corrected when it ends.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from config.access import LimitsConfig
from server.access.errors import RateLimited
from server.access.principal import KeyLimits, Principal

MINUTE = 60.0
REMEMBERED = 10_000  # keys and subjects with a state of their own
RATE_LIMIT_HEADERS = tuple(
    f"x-ratelimit-{what}-{of}"
    for what in ("limit", "remaining", "reset")
    for of in ("requests", "tokens")
)
_SOON = 1.0  # seconds after which a place may be free


@dataclass
class Bucket:
    """Holds up to `limit`, and gets as much in a minute.  It may go below nothing: what was used was used."""

    limit: int
    level: float
    at: float  # seconds

    @classmethod
    def full(cls, limit: int, now: float) -> Bucket:
        return cls(limit, float(limit), now)

    def refill(self, now: float) -> None:
        self.level = min(self.limit, self.level + max(0.0, now - self.at) * self.limit / MINUTE)
        self.at = now

    def seconds_until(self, amount: float) -> float:
        """Seconds until it holds `amount`; 0 if it does."""
        return max(0.0, (amount - self.level) * MINUTE / self.limit)

    def resize(self, limit: int) -> None:
        """Another limit, with the same part of it used."""
        self.level, self.limit = self.level * limit / self.limit, limit


@dataclass
class Usage:
    """One key's state."""

    requests: Bucket | None = None
    tokens: Bucket | None = None
    sequences: int = 0  # running or waiting

    def idle(self, now: float) -> bool:
        """Whether forgetting it changes nothing."""
        for bucket in (self.requests, self.tokens):
            if bucket is not None:
                bucket.refill(now)
                if bucket.level < bucket.limit:
                    return False
        return self.sequences == 0


@dataclass
class Limiter:
    """The usage of all keys.  `places`: sequences that one key may hold, whatever else its limits say."""

    config: LimitsConfig
    places: int
    _usage: dict[str, Usage] = field(default_factory=dict, init=False)

    def limits(self, principal: Principal) -> KeyLimits:
        """Those of the key, and of its role where the key has none."""
        own, role = principal.limits, self.config.of(principal.role.label)
        return KeyLimits(
            requests_per_minute=own.requests_per_minute or role.requests_per_minute,
            tokens_per_minute=own.tokens_per_minute or role.tokens_per_minute,
            concurrent_requests=own.concurrent_requests or role.concurrent_requests,
            max_tokens=own.max_tokens or role.max_tokens,
        )

    def count_request(self, principal: Principal, now: float) -> None:
        """One more request.  Raises RateLimited."""
        bucket = self._state(principal, now).requests
        if bucket is None:
            return
        wait = bucket.seconds_until(1)
        if wait:
            raise RateLimited(
                f"This key may make {bucket.limit} requests in a minute; try again in {wait:.1f} s.",
                wait,
            )
        bucket.level -= 1

    def reserve(self, principal: Principal, sequences: int, tokens: int, now: float) -> int:
        """Places for `sequences`, and `tokens`; returns how many were taken.  Raises RateLimited.

        A request for more tokens than the limit of a minute is let in when all of them are there.
        """
        usage, limits = self._state(principal, now), self.limits(principal)
        most = min(self.places, limits.concurrent_requests or self.places)
        if usage.sequences + sequences > most:
            raise RateLimited(
                f"This key may have {most} sequences running or waiting; it has {usage.sequences} "
                f"and asks for {sequences}.",
                _SOON,
            )
        bucket, taken = usage.tokens, 0
        if bucket is not None:
            taken = min(tokens, bucket.limit)
            wait = bucket.seconds_until(taken)
            if wait:
                raise RateLimited(
                    f"This key may use {bucket.limit} tokens in a minute, this request reserves "
                    f"{taken}; try again in {wait:.1f} s.",
                    wait,
                )
            bucket.level -= taken
        usage.sequences += sequences
        return taken

    def settle(
        self, principal: Principal, sequences: int, reserved: int, used: int, now: float
    ) -> None:
        """The request has ended with `used` tokens."""
        usage = self._state(principal, now)
        usage.sequences -= sequences
        if usage.tokens is not None:
            usage.tokens.level = min(usage.tokens.limit, usage.tokens.level + reserved - used)

    def headers(self, principal: Principal, now: float) -> Mapping[str, str]:
        """x-ratelimit-*, for what is limited; durations as OpenAI writes them."""
        usage = self._state(principal, now)
        shown: dict[str, str] = {}
        for name, bucket in (("requests", usage.requests), ("tokens", usage.tokens)):
            if bucket is not None:
                shown[f"x-ratelimit-limit-{name}"] = str(bucket.limit)
                shown[f"x-ratelimit-remaining-{name}"] = str(max(0, int(bucket.level)))
                shown[f"x-ratelimit-reset-{name}"] = f"{bucket.seconds_until(bucket.limit):.3f}s"
        return shown

    def _state(self, principal: Principal, now: float) -> Usage:
        usage = self._usage.get(principal.id)
        if usage is None:
            if len(self._usage) >= REMEMBERED:
                self._usage = {k: u for k, u in self._usage.items() if not u.idle(now)}
            usage = self._usage[principal.id] = Usage()
        limits = self.limits(principal)
        usage.requests = _bucket(usage.requests, limits.requests_per_minute, now)
        usage.tokens = _bucket(usage.tokens, limits.tokens_per_minute, now)
        return usage


def _bucket(bucket: Bucket | None, limit: int | None, now: float) -> Bucket | None:
    """The bucket with today's limit and level."""
    if limit is None:
        return None
    if bucket is None:
        return Bucket.full(limit, now)
    if bucket.limit != limit:
        bucket.resize(limit)
    bucket.refill(now)
    return bucket
