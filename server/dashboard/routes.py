"""GET / and what the page loads.  Anybody may load it, so that a key can be typed in; data need a role."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from server.access.principal import ANYBODY, Principal
from server.api.errors import ApiError

INDEX = "index.html"
# Not from the system's table, which differs from one machine to the next.
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
# No script, style or connection but those of this server, and no text is ever taken for markup.
POLICY = "; ".join(
    [
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    ]
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-cache",  # asked again each time, and not sent again while it is the same
}


class UnknownFile(ApiError):
    """The page has no such file."""

    status = 404
    type = "invalid_request_error"
    code = "file_not_found"


@dataclass(frozen=True)
class Asset:
    """A file of the page."""

    body: bytes
    headers: dict[str, str]


@lru_cache(maxsize=1)
def assets() -> dict[str, Asset]:
    """All of them, by name; nothing else can be asked for."""
    found = {}
    for file in files(__package__).joinpath("page").iterdir():
        kind = TYPES.get("." + file.name.rpartition(".")[2])
        if kind is not None:
            body = file.read_bytes()
            tag = f'"{hashlib.sha256(body).hexdigest()[:32]}"'
            found[file.name] = Asset(body, {**HEADERS, "content-type": kind, "etag": tag})
    return found


def dashboard_routes(*, launcher: bool) -> list[BaseRoute]:
    """launcher: whether a launcher answers under /admin here."""

    async def about(request: Request) -> Response:
        """Asked for what is open to all, whoever has to show a key is nobody yet."""
        body = {"key_needed": _principal(request) is not ANYBODY, "launcher": launcher}
        return JSONResponse(body, headers=HEADERS)

    return [
        Route("/", _index, methods=["GET"]),
        Route("/dashboard/about.json", about, methods=["GET"]),
        Route("/dashboard/{name}", _asset, methods=["GET"]),
        Route("/v1/access", _access, methods=["GET"]),
    ]


async def _index(request: Request) -> Response:
    return _answer(request, INDEX)


async def _asset(request: Request) -> Response:
    return _answer(request, request.path_params["name"])


def _answer(request: Request, name: str) -> Response:
    asset = assets().get(name)
    if asset is None:
        raise UnknownFile(f"The dashboard has no file {name!r}.")
    if request.headers.get("if-none-match") == asset.headers["etag"]:
        return Response(status_code=304, headers=asset.headers)
    return Response(asset.body, headers=asset.headers)


async def _access(request: Request) -> Response:
    """Whose key it is, and what it may do."""
    principal = _principal(request)
    return JSONResponse({"name": principal.name, "role": principal.role.label})


def _principal(request: Request) -> Principal:
    principal: Principal = getattr(request.state, "principal", ANYBODY)
    return principal
