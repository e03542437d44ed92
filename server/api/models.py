"""GET /v1/models and /v1/models/{id}, and what is said of switching without a launcher."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from server.api.errors import NotServed, UnknownModel
from server.api.service import Service
from server.api.wire import json_response


async def list_models(request: Request) -> Response:
    """All configured models, and whether they are loaded."""
    return json_response({"object": "list", "data": _entries(request.app.state.service)})


async def show_model(request: Request) -> Response:
    """One model by id or alias; the id of a hub model has a slash in it."""
    service: Service = request.app.state.service
    name = request.path_params["model_id"]
    loaded, listed = service.model, service.listed(name)
    if loaded is not None and loaded.answers_to(name):
        wanted = loaded.id
    elif listed is not None:
        wanted = listed.id
    else:
        raise UnknownModel(f"The model {name!r} is not served here.", param="model")
    return json_response(next(e for e in _entries(service) if e["id"] == wanted))


async def switch_model(request: Request) -> Response:
    """POST and GET /admin/models/switch, where no launcher answers them."""
    raise NotServed(
        "This server was started without the launcher, which is what loads another model: "
        "restart it with --model NAME, or start it through ./scripts/serve."
    )


def _entries(service: Service) -> list[dict[str, Any]]:
    """The loaded model first."""
    loaded = service.model
    others = [
        _entry(listed.id, service.started, listed.max_model_len, loaded=False)
        for listed in service.catalog
        if loaded is None or not loaded.answers_to(listed.id)
    ]
    if loaded is None:
        return others
    return [_entry(loaded.id, loaded.created, loaded.max_model_len, loaded=True), *others]


def _entry(name: str, created: int, max_model_len: int | None, *, loaded: bool) -> dict[str, Any]:
    return {
        "id": name,
        "object": "model",
        "created": created,
        "owned_by": "mlx-cluster",
        "max_model_len": max_model_len,
        "loaded": loaded,
    }
