"""An answer of rank 0 on its way to the client, piece by piece as it comes."""

from __future__ import annotations

from collections.abc import Iterable

import httpx
import structlog
from starlette.types import Send

from server.api.errors import Failure
from server.api.wire import to_json

log = structlog.get_logger(__name__)

Header = tuple[bytes, bytes]

# RFC 9110, 7.6.1: meant for one connection only.  `expect` is answered by this server.
HOP_BY_HOP = frozenset(
    b"connection keep-alive proxy-authenticate proxy-authorization proxy-connection te trailer "
    b"transfer-encoding upgrade expect".split()
)
# This server sets its own.
_OWN = frozenset((b"date", b"server"))

_BROKEN_OFF = Failure(
    500, "The connection to rank 0 was lost.", "server_error", code="internal_error"
)


def end_to_end(headers: Iterable[Header]) -> list[Header]:
    """Headers without those that concern one connection; names in lower case."""
    lowered = [(name.lower(), value) for name, value in headers]
    named = {
        token.strip().lower()
        for name, value in lowered
        if name == b"connection"
        for token in value.split(b",")
    }
    return [(name, value) for name, value in lowered if name not in HOP_BY_HOP | named]


async def relay(response: httpx.Response, send: Send) -> None:
    """Send the response on.

    When rank 0 breaks off, an event stream ends with an error event; other bodies stay incomplete, which
    makes the server cut the connection, so that no client takes half an answer for a whole one.
    """
    headers = [header for header in end_to_end(response.headers.raw) if header[0] not in _OWN]
    await send({"type": "http.response.start", "status": response.status_code, "headers": headers})
    last = b"\n\n"
    try:
        async for chunk in response.aiter_raw():
            last = (last + chunk)[-4:]
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
    except httpx.TransportError as error:
        log.warning("rank 0 broke off", error=repr(error))
        between_events = last.endswith((b"\n\n", b"\r\n\r\n"))
        if not (_is_event_stream(response) and between_events):
            return
        event = b"data: " + to_json(_BROKEN_OFF.body()) + b"\n\n"
        await send({"type": "http.response.body", "body": event, "more_body": True})
    await send({"type": "http.response.body", "body": b""})


def _is_event_stream(response: httpx.Response) -> bool:
    content_type: str = response.headers.get("content-type", "")
    return content_type.startswith("text/event-stream")
