"""The client's side of a forwarded request: its body as it comes, and whether it is still there."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import suppress
from typing import Any, TypeVar

from starlette.types import Message, Receive

from server.api.errors import ApiError, BodyTooLarge

T = TypeVar("T")

_DISCARD_S = 2.0


class UploadStalled(ApiError):
    """The client stopped sending in the middle of its body."""

    status = 408
    type = "invalid_request_error"


class ClientGone(Exception):
    """The client closed the connection."""


class Upload:
    """A request body on its way upstream: counted, and each wait for more of it bounded.

    limit: bytes; timeout_s: seconds in which something of the body must come.
    """

    def __init__(self, receive: Receive, limit: int, timeout_s: float) -> None:
        self._receive = receive
        self._limit = limit
        self._timeout_s = timeout_s
        self._finished = asyncio.Event()

    def check_announced(self, length: int) -> None:
        """Raises BodyTooLarge for a body of `length` bytes."""
        if length > self._limit:
            raise BodyTooLarge(f"The body exceeds the limit of {self._limit} bytes.")

    def skip(self) -> None:
        """There is no body."""
        self._finished.set()

    async def chunks(self) -> AsyncIterator[bytes]:
        """The body in pieces.  Raises BodyTooLarge, UploadStalled and ClientGone."""
        total, more = 0, True
        while more:
            message = await self._next()
            chunk: bytes = message.get("body", b"")
            more = message.get("more_body", False)
            total += len(chunk)
            self.check_announced(total)
            yield chunk
        self._finished.set()

    async def discard(self) -> None:
        """Read on for a moment: closing on a client that still sends makes it miss the answer."""
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._read_on(), _DISCARD_S)

    async def receive_after(self) -> Message:
        """The first message after the body; during the body, messages belong to `chunks`."""
        await self._finished.wait()
        return await self._receive()

    async def _next(self) -> Message:
        try:
            message = await asyncio.wait_for(self._receive(), self._timeout_s)
        except asyncio.TimeoutError:
            raise UploadStalled(f"No more of the body came for {self._timeout_s:g} s.") from None
        if message["type"] == "http.disconnect":
            raise ClientGone
        return message

    async def _read_on(self) -> None:
        left, more = self._limit, True
        while more and left > 0:
            message = await self._receive()
            left -= len(message.get("body", b""))
            more = message.get("more_body", False)


async def until_gone(work: Coroutine[Any, Any, T], receive: Receive) -> T:
    """The result of `work`; cancels it and raises ClientGone when the client goes away first."""
    task = asyncio.create_task(work)
    gone = asyncio.create_task(_disconnect(receive))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientGone
    finally:
        gone.cancel()
        task.cancel()
        # Upstream must be let go before the connection of the client is.
        await asyncio.wait({task})


async def _disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
