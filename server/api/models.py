"""GET /v1/models and /v1/models/{id}"""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from server.api.errors import UnknownModel
from server.api.service import ServedModel, Service
from server.api.wire import json_response


async def list_models(request: Request) -> Response:
    """The served model; none while it loads."""
    service: Service = request.app.state.service
    models = [] if service.model is None else [_shown(service.model)]
    return json_response({"object": "list", "data": models})


async def show_model(request: Request) -> Response:
    """One model by id or alias; the id of a hub model has a slash in it."""
    service: Service = request.app.state.service
    name = request.path_params["model_id"]
    if service.model is None or not service.model.answers_to(name):
        raise UnknownModel(f"The model {name!r} is not served here.", param="model")
    return json_response(_shown(service.model))


def _shown(model: ServedModel) -> dict[str, Any]:
    return {
        "id": model.id,
        "object": "model",
        "created": model.created,
        "owned_by": "mlx-cluster",
        "max_model_len": model.max_model_len,
    }
