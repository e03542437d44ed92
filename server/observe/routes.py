"""Routes of rank 0 for those who look at the cluster, and for ending a request."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing, suppress

from sse_starlette import EventSourceResponse
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from server.access.principal import ANYBODY, Principal, Role
from server.api.errors import ApiError, InvalidRequest, Overloaded
from server.api.wire import to_json
from server.observe.feed import EventFeed
from server.observe.flight import Flight
from server.observe.requests import RequestBook
from server.observe.timeline import chrome_trace
from server.rpc.errors import Overloaded as CoordinatorBusy
from server.rpc.log_book import LogBook
from server.rpc.timelines import Recording

MAX_TIMELINE_S = 30.0
DEFAULT_TIMELINE_S = 5.0
PING_S = 15
DEFAULT_LINES = 200


class UnknownRequest(ApiError):
    """No such request is in flight, or it is somebody else's."""

    status = 404
    type = "invalid_request_error"
    code = "request_not_found"


def events_route(feed: EventFeed) -> Route:
    """GET /v1/cluster/events: server-sent events, each a JSON picture of the cluster."""

    async def events(request: Request) -> Response:
        feed.check_room()
        return EventSourceResponse(_events(feed), ping=PING_S, sep="\n")

    return Route("/v1/cluster/events", events, methods=["GET"])


async def _events(feed: EventFeed) -> AsyncGenerator[bytes, None]:
    with suppress(Overloaded):  # the last place was taken since there was room
        async with aclosing(feed.watch()) as pictures:
            async for picture in pictures:
                yield b"data: " + picture + b"\n\n"


def timeline_route(record: Callable[[float], Awaitable[Recording]], epoch: int) -> Route:
    """GET /v1/cluster/timeline?seconds=N: what all stages do in the next N seconds, as a Chrome trace."""

    async def timeline(request: Request) -> Response:
        seconds = _seconds(request.query_params.get("seconds"))
        try:
            recording = await record(seconds)
        except CoordinatorBusy as error:
            raise Overloaded(f"{error}.") from error
        body = await asyncio.to_thread(lambda: to_json(chrome_trace(recording, epoch)))
        return Response(body, media_type="application/json")

    return Route("/v1/cluster/timeline", timeline, methods=["GET"])


def _seconds(text: str | None) -> float:
    try:
        seconds = DEFAULT_TIMELINE_S if text is None else float(text)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds <= MAX_TIMELINE_S:
        raise InvalidRequest(
            f"seconds must be a number above 0 and at most {MAX_TIMELINE_S:g}.", param="seconds"
        )
    return seconds


def logs_route(logs: LogBook) -> Route:
    """GET /v1/cluster/logs?lines=N: the latest log lines of all ranks, oldest first."""

    async def latest(request: Request) -> Response:
        text = request.query_params.get("lines", str(DEFAULT_LINES))
        if not (text.isascii() and text.isdigit() and len(text) < 10 and int(text) > 0):
            raise InvalidRequest("lines must be a number from 1 up.", param="lines")
        dropped = [
            {"rank": rank, "node": node, "lines": lines}
            for (rank, node), lines in sorted(logs.dropped.items())
        ]
        body = {"object": "list", "data": logs.latest(int(text)), "dropped": dropped}
        return Response(to_json(body), media_type="application/json")

    return Route("/v1/cluster/logs", latest, methods=["GET"])


def cancel_route(book: RequestBook, cancel: Callable[[str], None]) -> Route:
    """DELETE /v1/requests/{id}: end a request in flight, by its x-request-id or the id of its response.

    Who is neither operator nor its owner is told that there is no such request.
    """

    async def cancel_request(request: Request) -> Response:
        wanted = request.path_params["request_id"]
        mine = [f for f in book.flights if wanted in _names(f) and _may_cancel(request, f)]
        if not mine:
            raise UnknownRequest(f"No request {wanted!r} is in flight.")
        for flight in mine:
            cancel(flight.request.id)
        body = {"id": wanted, "object": "request", "cancelled": True, "sequences": len(mine)}
        return Response(to_json(body), media_type="application/json")

    return Route("/v1/requests/{request_id:path}", cancel_request, methods=["DELETE"])


def _names(flight: Flight) -> tuple[str, str]:
    return flight.group, flight.request.id


def _may_cancel(request: Request, flight: Flight) -> bool:
    principal: Principal = getattr(request.state, "principal", ANYBODY)
    return principal.role >= Role.OPERATOR or principal.id == flight.caller.principal.id
