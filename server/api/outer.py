"""The middlewares that all applications have, this API's and those of the nodes' own ports."""

from __future__ import annotations

from collections.abc import Sequence

from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware

from server.access.limits import RATE_LIMIT_HEADERS
from server.access.middleware import AccessMiddleware, Guard
from server.api.header_limits import HeaderLimitMiddleware
from server.api.request_id import RequestIdMiddleware

CORS_MAX_AGE_S = 600


def outermost(cors_origins: Sequence[str] = ()) -> list[Middleware]:
    """What comes before anything else, on every port.

    cors_origins: of the web pages whose browsers are let through; a preflight has no key, so it is answered
    before anybody is asked for one.
    """
    cors = Middleware(
        CORSMiddleware,
        allow_origins=list(cors_origins),
        allow_methods=["GET", "POST", "DELETE"],
        allow_headers=["*"],
        expose_headers=["x-request-id", "retry-after", *RATE_LIMIT_HEADERS],
        max_age=CORS_MAX_AGE_S,
    )
    first = [Middleware(RequestIdMiddleware), Middleware(HeaderLimitMiddleware)]
    return [*first, cors] if cors_origins else first


def guarded(guard: Guard | None) -> list[Middleware]:
    """The middleware that lets in or refuses; below that of request ids, above all that answers."""
    return [] if guard is None else [Middleware(AccessMiddleware, guard)]
