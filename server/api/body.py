"""Reading request bodies: bounded in size, alone and together, and in the time that a client may take."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field

from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.types import Receive

from server.api.errors import BodyStalled, BodyTooLarge, Overloaded

LEAST_RATE = 16 << 10  # bytes a second, beyond the patience
MAX_RECEIVING = 256 << 20  # bytes of all bodies that are being read; at least one of the largest


@dataclass
class BodyReader:
    """Reads the bodies of one port.

    limit: bytes of one body.  patience_s: seconds that a body may take, and one more for every LEAST_RATE bytes
    of it that have come, so that neither silence nor a trickle holds a place for long.
    """

    limit: int
    patience_s: float = 30.0
    max_receiving: int = MAX_RECEIVING
    receiving: int = field(default=0, init=False)  # bytes of bodies that are not whole yet

    async def read(self, headers: Headers, receive: Receive) -> bytes:
        """The whole body.

        Raises BodyTooLarge as soon as it is known to be longer than the limit, BodyStalled, Overloaded, and
        ClientDisconnect.
        """
        declared = headers.get("content-length", "")
        if declared.isdigit() and "transfer-encoding" not in headers:
            self._check(int(declared))
        body, started, more = bytearray(), time.monotonic(), True
        try:
            while more:
                deadline = started + self.patience_s + len(body) / LEAST_RATE
                chunk, more = await _next(receive, deadline - time.monotonic(), len(body))
                self._check(len(body) + len(chunk))
                body += chunk
                self.receiving += len(chunk)
                if self.receiving > max(self.max_receiving, self.limit):
                    raise Overloaded("Too many large requests are being received.")
            return bytes(body)
        finally:
            self.receiving -= len(body)

    def _check(self, length: int) -> None:
        if length > self.limit:
            raise BodyTooLarge(f"The body exceeds the limit of {self.limit} bytes.")


async def _next(receive: Receive, patience: float, received: int) -> tuple[bytes, bool]:
    """What comes next of a body, and whether there is more of it."""
    try:
        message = await asyncio.wait_for(receive(), patience)
    except asyncio.TimeoutError:
        raise BodyStalled(
            f"The body did not come in time; {received} bytes of it have arrived."
        ) from None
    if message["type"] == "http.disconnect":
        raise ClientDisconnect
    return message.get("body", b""), message.get("more_body", False)
