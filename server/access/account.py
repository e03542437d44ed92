"""What one request uses: made by the middleware, told by whoever runs sequences, read for the audit log.

It is found through a context variable, which follows the request into its tasks and threads, so that no
function between the middleware and the sequences has to hand it on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field

from server.access.limits import Limiter
from server.access.principal import ANYBODY, Principal


@dataclass
class Account:
    """One request's."""

    principal: Principal = ANYBODY
    limiter: Limiter | None = None  # None: no limits
    clock: Callable[[], float] = time.monotonic
    counted: bool = False  # whether the answer tells what is left of the limits
    prompt_tokens: int = field(default=0, init=False)
    completion_tokens: int = field(default=0, init=False)
    status: int = field(default=0, init=False)  # of the response; 0: there is none yet
    failed: bool = field(default=False, init=False)  # a sequence of it, whatever the status said

    @property
    def tenant(self) -> str:
        """Requests of one tenant wait for each other, those of several take turns."""
        return self.principal.id

    @property
    def max_tokens(self) -> int | None:
        """The longest output that may be asked for; None: as long as the model allows."""
        return self.limiter.limits(self.principal).max_tokens if self.limiter else None

    def headers(self) -> Mapping[str, str]:
        """x-ratelimit-* of the answer."""
        if self.limiter is None or not self.counted:
            return {}
        return self.limiter.headers(self.principal, self.clock())

    def start(self, sequences: int, prompt_tokens: int, output_tokens: int) -> Holding:
        """Reserve for sequences with these tokens together.  Raises RateLimited."""
        tokens = prompt_tokens + output_tokens
        taken = 0
        if self.limiter is not None:
            taken = self.limiter.reserve(self.principal, sequences, tokens, self.clock())
        return Holding(self, sequences, prompt_tokens, taken)


@dataclass
class Holding:
    """What is reserved until `end`."""

    account: Account
    sequences: int
    prompt_tokens: int
    reserved: int
    _ended: bool = field(default=False, init=False)

    def end(self, completion_tokens: int) -> None:
        """The sequences have ended, with that much output; a second time nothing happens."""
        if self._ended:
            return
        self._ended = True
        account = self.account
        account.prompt_tokens += self.prompt_tokens
        account.completion_tokens += completion_tokens
        if account.limiter is not None:
            used = self.prompt_tokens + completion_tokens
            now = account.clock()
            account.limiter.settle(account.principal, self.sequences, self.reserved, used, now)


_current: ContextVar[Account] = ContextVar("account")


def current() -> Account:
    """The account of the request that is being served; one without limits outside of any."""
    return _current.get(Account())


def enter(account: Account) -> None:
    """Make it the current one, for this task and what it starts."""
    _current.set(account)
