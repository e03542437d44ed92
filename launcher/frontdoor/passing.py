"""Requests that make no tokens: passed on to whoever leads, as they are.

While nobody leads after somebody did they wait a little, and what only asks is asked again where rank 0 went
away over it: most failures are over by then, and whoever looks at the cluster does not have to know of them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress

from starlette.requests import ClientDisconnect, Request
from starlette.types import Receive, Scope, Send

from launcher.frontdoor.leadership import Backoff, Leadership
from server.api.body import BodyReader
from server.api.disconnect import unless_disconnected
from server.api.errors import ApiError, NotReady, Overloaded, respond
from server.node.forward import Forwarder, Unanswered, body_of

ASKING = ("GET", "HEAD")  # methods that change nothing


class Passing:
    """An ASGI application; below it must be RequestIdMiddleware, and `close` ends its use."""

    def __init__(
        self,
        leadership: Leadership,
        bodies: BodyReader,
        waiting: int,
        patience: float,
        backoff: Callable[[], Backoff],
    ) -> None:
        """`waiting`: requests that may wait for somebody to lead; `patience`: seconds for which each may."""
        self._leadership, self._bodies = leadership, bodies
        self._most, self._patience, self._backoff = waiting, patience, backoff
        self.waiting = 0
        self._forwarder: Forwarder | None = None
        self._closing: set[asyncio.Task[None]] = set()

    def use(self, new: Forwarder | None) -> None:
        """Pass on to somebody else, or to nobody: what is on its way is broken off."""
        old, self._forwarder = self._forwarder, new
        if old is not None:
            task = asyncio.get_running_loop().create_task(old.close())
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)

    async def close(self, seconds: float) -> None:
        """Within so long."""
        self.use(None)
        with suppress(asyncio.TimeoutError):
            closing = asyncio.gather(*self._closing, return_exceptions=True)
            await asyncio.wait_for(closing, seconds)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            if not self._leadership.had_one:
                raise NotReady(f"Nothing can be served: {self._leadership.reason}.")
            body = await body_of(self._bodies, scope, receive)
            await self._pass(scope, body, receive, send)
        except ApiError as error:
            refusal = await respond(Request(scope), error)
            await refusal(scope, receive, send)
        except ClientDisconnect:
            return

    async def _pass(self, scope: Scope, body: bytes | None, receive: Receive, send: Send) -> None:
        loop, backoff = asyncio.get_running_loop(), self._backoff()
        deadline = loop.time() + self._patience
        while True:
            while self._forwarder is None:
                await unless_disconnected(receive, self._leader(deadline - loop.time()))
            try:
                await self._forwarder.forward(scope, body, receive, send)
                return
            except Unanswered:
                if scope["method"] not in ASKING or loop.time() >= deadline:
                    raise
            await unless_disconnected(receive, self._leadership.pause(backoff.pause()))

    async def _leader(self, seconds: float) -> None:
        """Wait until somebody leads.  Raises NotReady, and Overloaded if too many wait already."""
        if self.waiting >= self._most:
            raise Overloaded(f"{self.waiting} requests wait already: {self._leadership.reason}.")
        self.waiting += 1
        try:
            await self._leadership.wait(seconds)
        finally:
            self.waiting -= 1
