"""What can be done with a stored response, wherever it is kept: at rank 0, or at a front door."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from server.api.errors import InvalidRequest
from server.api.responses.store import ResponseStore, Stored
from server.api.translation import owner_of
from server.api.wire import json_response

PAGE = 100  # input items, at most, as OpenAI has it


def stored_routes(middleware: Sequence[Middleware] = ()) -> list[Route]:
    """For an application whose state has the store as `responses`."""
    path = "/v1/responses/{response_id}"
    return [
        Route(path, show_response, methods=["GET"], middleware=middleware),
        Route(path, delete_response, methods=["DELETE"], middleware=middleware),
        Route(f"{path}/input_items", list_input_items, methods=["GET"], middleware=middleware),
    ]


async def show_response(request: Request) -> Response:
    """GET /v1/responses/{id}"""
    if request.query_params.get("stream", "false") != "false":
        raise InvalidRequest("stream: a stored response is given whole.", param="stream")
    return Response(_stored(request).whole.document, media_type="application/json")


async def delete_response(request: Request) -> Response:
    """DELETE /v1/responses/{id}"""
    response_id = request.path_params["response_id"]
    store_of(request).delete(response_id, owner_of(request))
    return json_response({"id": response_id, "object": "response", "deleted": True})


async def list_input_items(request: Request) -> Response:
    """GET /v1/responses/{id}/input_items"""
    items = msgspec.json.decode(_stored(request).whole.input_items, type=list[msgspec.Raw])
    order = request.query_params.get("order", "desc")
    if order not in ("asc", "desc"):
        raise InvalidRequest("order must be asc or desc.", param="order")
    shown = items if order == "asc" else items[::-1]
    after = request.query_params.get("after")
    if after is not None:
        ids = [_id(item) for item in shown]
        if after not in ids:
            raise InvalidRequest(f"after: no item has the id {after[:80]!r}.", param="after")
        shown = shown[ids.index(after) + 1 :]
    limit = _limit(request.query_params.get("limit", "20"))
    page = shown[:limit]
    return json_response(
        {
            "object": "list",
            "data": page,
            "first_id": _id(page[0]) if page else None,
            "last_id": _id(page[-1]) if page else None,
            "has_more": len(shown) > limit,
        }
    )


class _Item(msgspec.Struct):
    id: str


def _id(item: msgspec.Raw) -> str:
    return msgspec.json.decode(item, type=_Item).id


def _limit(text: str) -> int:
    if not (text.isascii() and text.isdigit() and 1 <= int(text[:9]) <= PAGE):
        raise InvalidRequest(f"limit must be a number from 1 to {PAGE}.", param="limit")
    return int(text)


def _stored(request: Request) -> Stored:
    return store_of(request).get(request.path_params["response_id"], owner_of(request))


def store_of(request: Request) -> ResponseStore:
    store: ResponseStore = request.app.state.responses
    return store
