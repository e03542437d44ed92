"""Who leads, for requests that wait for somebody to ask."""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass, field

from launcher.door import LeaderAddress
from server.api.errors import NotReady


@dataclass
class Leadership:
    """Told by the supervisor, waited for by requests; of one event loop."""

    address: LeaderAddress | None = None
    reason: str = "the cluster is starting"
    permanent: bool = False
    had_one: bool = False  # somebody has led
    _changed: asyncio.Event = field(default_factory=asyncio.Event)

    def change(self, address: LeaderAddress | None, reason: str, permanent: bool) -> None:
        """See launcher.door.Door.leader_changed."""
        self.address, self.permanent = address, permanent and address is None
        self.reason = reason or "no rank leads"
        self.had_one = self.had_one or address is not None
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    async def wait(self, seconds: float) -> LeaderAddress:
        """The leader, at once if there is one.  Raises NotReady with the reason why there is none in time."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + seconds
        while self.address is None:
            if self.permanent or loop.time() >= deadline:
                raise NotReady(f"Nothing can be served: {self.reason}.")
            await self._change_within(deadline - loop.time())
        return self.address

    async def lost(self, leader: LeaderAddress) -> None:
        """Return when `leader` leads no more."""
        while self.address == leader:
            await self._changed.wait()

    async def pause(self, seconds: float) -> None:
        """Wait so long, or until somebody else leads."""
        await self._change_within(seconds)

    async def _change_within(self, seconds: float) -> None:
        try:
            await asyncio.wait_for(self._changed.wait(), max(0.0, seconds))
        except asyncio.TimeoutError:
            return


@dataclass
class Backoff:
    """Growing pauses between two attempts at one rank 0, each a random part shorter; seconds."""

    first: float
    longest: float
    _next: float | None = None

    def pause(self) -> float:
        """How long to wait now."""
        step = self.first if self._next is None else self._next
        self._next = min(2 * step, self.longest)
        return step * random.uniform(0.5, 1.0)  # noqa: S311 - jitter, not a secret

    def reset(self) -> None:
        """An attempt got somewhere."""
        self._next = None
