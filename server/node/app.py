"""What the applications of a node's own ports have in common with the OpenAI API."""

from __future__ import annotations

from collections.abc import Sequence

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.routing import BaseRoute
from starlette.types import Lifespan

from server.access.middleware import Guard
from server.api.errors import ApiError, respond
from server.api.outer import guarded, outermost


def node_app(
    routes: Sequence[BaseRoute],
    lifespan: Lifespan[Starlette] | None = None,
    guard: Guard | None = None,
) -> Starlette:
    """An application with the API's error bodies and request ids."""
    app = Starlette(
        routes=routes,
        middleware=[*outermost(), *guarded(guard)],
        exception_handlers=dict.fromkeys((ApiError, HTTPException, Exception), respond),
        lifespan=lifespan,
    )
    app.router.redirect_slashes = False
    return app
