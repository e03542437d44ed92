"""What operators can ask of a running launcher, over HTTP at the front door.  Roles: server/access/roles.py."""

from __future__ import annotations

import json
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from launcher.files import UNUSABLE
from launcher.models import SwitchInProgress
from launcher.status import status_of
from launcher.supervisor import Supervisor
from server.api.errors import InvalidRequest

MAX_BODY = 4096  # bytes


class _Admin:
    """The handlers; all answers are documents of the state after the request."""

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor

    async def status(self, request: Request) -> Response:
        return JSONResponse(status_of(self._supervisor))

    async def drain(self, request: Request) -> Response:
        self._supervisor.drain(True)
        return self._accepted()

    async def undrain(self, request: Request) -> Response:
        self._supervisor.drain(False)
        return self._accepted()

    async def restart(self, request: Request) -> Response:
        try:
            self._supervisor.restart()
        except UNUSABLE as error:
            message = f"nothing is restarted: {error}"
            raise InvalidRequest(message) from error
        return self._accepted()

    async def lead(self, request: Request) -> Response:
        node = await _text(request, "node", may_be_null=True)
        try:
            self._supervisor.lead(node)
        except KeyError:
            names = ", ".join(member.name for member in self._supervisor.cluster.members)
            message = f"node: there is no {node!r}; the nodes are {names}."
            raise InvalidRequest(message, param="node") from None
        return self._accepted()

    async def show_switch(self, request: Request) -> Response:
        return JSONResponse(self._supervisor.models.document())

    async def switch(self, request: Request) -> Response:
        model = await _text(request, "model")
        assert model is not None
        try:
            self._supervisor.switch_model(model)
        except KeyError:
            names = ", ".join(self._supervisor.config.models)
            message = f"model: {model!r} is not configured; models.yaml has {names}."
            raise InvalidRequest(message, param="model") from None
        except SwitchInProgress as other:
            message = f"model: {other} is being loaded; wait until that has ended."
            raise InvalidRequest(message, param="model") from None
        return JSONResponse(self._supervisor.models.document(), 202)

    def _accepted(self) -> Response:
        return JSONResponse(status_of(self._supervisor), 202)


def admin_routes(supervisor: Supervisor) -> list[Route]:
    """The routes under /admin."""
    admin = _Admin(supervisor)
    return [
        Route("/admin/status", admin.status, methods=["GET"]),
        Route("/admin/drain", admin.drain, methods=["POST"]),
        Route("/admin/undrain", admin.undrain, methods=["POST"]),
        Route("/admin/restart", admin.restart, methods=["POST"]),
        Route("/admin/lead", admin.lead, methods=["POST"]),
        Route("/admin/models/switch", admin.show_switch, methods=["GET"]),
        Route("/admin/models/switch", admin.switch, methods=["POST"]),
    ]


async def _text(request: Request, name: str, *, may_be_null: bool = False) -> str | None:
    """The one field of a small JSON body."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BODY:
            raise InvalidRequest(f"The body is longer than {MAX_BODY} bytes.")
    try:
        fields: Any = json.loads(body)
    except (ValueError, RecursionError):
        raise InvalidRequest("The body is not valid JSON.") from None
    known = isinstance(fields, dict) and fields.keys() == {name}
    value = fields[name] if known else None
    if not known or not (isinstance(value, str) or (may_be_null and value is None)):
        raise InvalidRequest(f'The body should be {{"{name}": "..."}}.', param=name)
    found: str | None = value
    return found
