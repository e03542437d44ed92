"""POST /v1/responses, and what can be done with a stored one."""

from __future__ import annotations

import asyncio
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from server.api.chat import ChatDialect, chat_specs
from server.api.errors import InvalidRequest, NotServed
from server.api.generation import Job
from server.api.responses.dialect import ResponsesDialect
from server.api.responses.schemas import ResponsesBody
from server.api.responses.store import ResponseStore, Stored
from server.api.responses.translate import NAMES, as_chat, as_messages
from server.api.schemas import ChatBody, parse, parse_value
from server.api.service import Service
from server.api.streaming import streamed, whole
from server.api.templates import chat_prompt
from server.api.translation import owner_of, renamed
from server.api.wire import json_response

PAGE = 100  # input items, at most, as OpenAI has it


async def create_response(request: Request) -> Response:
    """POST /v1/responses"""
    service: Service = request.app.state.service
    body = await _body(request, service)
    model, generator = service.serving(body.model)
    messages = await asyncio.to_thread(_conversation, request, body)
    size = _size(messages)
    with renamed(NAMES):
        chat = await asyncio.to_thread(parse_value, ChatBody, as_chat(body, messages))
        chat_dialect = ChatDialect(model, chat)
        specs = await service.texts.run(size, chat_specs, chat, service, model, chat_dialect.id)

    def keep(document: dict[str, Any]) -> None:
        if body.stored:
            stored = Stored(
                document, _shown_input(body), messages + _said(document), owner_of(request)
            )
            _store(request).put(document["id"], stored)

    dialect = ResponsesDialect(body, chat_dialect, keep)
    job = Job(service, model, generator, specs)
    if body.stream:
        return await streamed(request, job, dialect, service.keep_alive_interval)
    return await whole(request, job, dialect)


async def count_input_tokens(request: Request) -> Response:
    """POST /v1/responses/input_tokens"""
    service: Service = request.app.state.service
    body = await _body(request, service)
    model, _ = service.serving(body.model)
    messages = await asyncio.to_thread(_conversation, request, body)
    size = _size(messages)
    with renamed(NAMES):
        chat = await asyncio.to_thread(parse_value, ChatBody, as_chat(body, messages))
        prompt = await service.texts.run(size, chat_prompt, chat, model)
    return json_response({"object": "response.input_tokens", "input_tokens": len(prompt)})


async def show_response(request: Request) -> Response:
    """GET /v1/responses/{id}"""
    if request.query_params.get("stream", "false") != "false":
        raise InvalidRequest("stream: a stored response is given whole.", param="stream")
    return json_response(_stored(request).document)


async def delete_response(request: Request) -> Response:
    """DELETE /v1/responses/{id}"""
    response_id = request.path_params["response_id"]
    _store(request).delete(response_id, owner_of(request))
    return json_response({"id": response_id, "object": "response", "deleted": True})


async def list_input_items(request: Request) -> Response:
    """GET /v1/responses/{id}/input_items"""
    items = _stored(request).input_items
    order = request.query_params.get("order", "desc")
    if order not in ("asc", "desc"):
        raise InvalidRequest("order must be asc or desc.", param="order")
    shown = items if order == "asc" else items[::-1]
    after = request.query_params.get("after")
    if after is not None:
        ids = [item["id"] for item in shown]
        if after not in ids:
            raise InvalidRequest(f"after: no item has the id {after[:80]!r}.", param="after")
        shown = shown[ids.index(after) + 1 :]
    limit = _limit(request.query_params.get("limit", "20"))
    page = shown[:limit]
    return json_response(
        {
            "object": "list",
            "data": page,
            "first_id": page[0]["id"] if page else None,
            "last_id": page[-1]["id"] if page else None,
            "has_more": len(shown) > limit,
        }
    )


async def compact(request: Request) -> Response:
    """POST /v1/responses/compact, which would be a response of this id to the routes above."""
    raise NotServed("Conversations are not compacted here.", status=404)


def _limit(text: str) -> int:
    if not (text.isascii() and text.isdigit() and 1 <= int(text[:9]) <= PAGE):
        raise InvalidRequest(f"limit must be a number from 1 to {PAGE}.", param="limit")
    return int(text)


async def _body(request: Request, service: Service) -> ResponsesBody:
    raw = await service.bodies.read(request.headers, request.receive)
    body = await asyncio.to_thread(parse, ResponsesBody, raw)
    service.note_unknown_fields(body.unknown_fields())
    if body.top_logprobs is not None and not body.wants_logprobs:
        message = 'top_logprobs needs include: ["message.output_text.logprobs"].'
        raise InvalidRequest(message, param="top_logprobs")
    if body.stream_options is not None and not body.stream:
        raise InvalidRequest("stream_options needs stream: true.", param="stream_options")
    return body


def _conversation(request: Request, body: ResponsesBody) -> list[dict[str, Any]]:
    """The messages so far, without instructions, which hold for one response only."""
    before: list[dict[str, Any]] = []
    if body.previous_response_id is not None:
        kept = _store(request).get(
            body.previous_response_id, owner_of(request), "previous_response_id"
        )
        before = kept.messages
    return before + as_messages(body.input)


def _size(messages: list[dict[str, Any]]) -> int:
    """Characters of what was said, roughly; a conversation may be longer than any body."""
    return sum(len(str(message.get("content", ""))) for message in messages)


def _said(document: dict[str, Any]) -> list[dict[str, Any]]:
    """The output of a response as chat messages."""
    return as_messages(ResponsesBody(model="-", input=document["output"]).input)


def _shown_input(body: ResponsesBody) -> list[dict[str, Any]]:
    shown = [item.model_dump(exclude_none=True) for item in body.input]
    return [{"id": f"item_{number}", **item} for number, item in enumerate(shown)]


def _stored(request: Request) -> Stored:
    return _store(request).get(request.path_params["response_id"], owner_of(request))


def _store(request: Request) -> ResponseStore:
    store: ResponseStore = request.app.state.responses
    return store
