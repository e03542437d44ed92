"""GET and PATCH /v1/cluster/config: the settings in force, and changes of the dynamic ones."""

from __future__ import annotations

import json
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from server.api.body import BodyReader
from server.api.errors import InvalidRequest
from server.api.strict_json import json_object
from server.api.wire import to_json
from server.rpc.config_store import ConfigStore

MAX_BODY = 1 << 16  # bytes


def config_routes(store: ConfigStore) -> list[Route]:
    """What GetConfig and SetConfig of the coordinator do, for clients that speak HTTP."""
    bodies = BodyReader(MAX_BODY)

    def shown(prefix: str = "") -> Response:
        entries = [
            {"key": e.key, "value": e.value, "origin": e.origin, "dynamic": e.dynamic}
            for e in store.entries(prefix)
        ]
        body = {"object": "list", "data": entries, "revision": store.revision}
        return Response(to_json(body), media_type="application/json")

    async def show(request: Request) -> Response:
        return shown(request.query_params.get("prefix", ""))

    async def change(request: Request) -> Response:
        fields = json_object(await bodies.read(request.headers, request.receive))
        if not fields:
            raise InvalidRequest('The body should be {"section.key": value, ...}.')
        refused = store.change({key: _text(value) for key, value in fields.items()}).refused
        if refused:
            key = next(iter(refused))
            raise InvalidRequest(" ".join(refused.values()), param=key)
        return shown()

    return [
        Route("/v1/cluster/config", show, methods=["GET"]),
        Route("/v1/cluster/config", change, methods=["PATCH"]),
    ]


def _text(value: Any) -> str:
    """As `--set` takes it: text as it is, everything else as JSON, which is YAML."""
    return value if isinstance(value, str) else json.dumps(value)
