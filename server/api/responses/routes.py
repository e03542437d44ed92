"""POST /v1/responses"""

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
from server.api.responses.store import PREVIOUS, Stored, UnknownResponse
from server.api.responses.stored import store_of
from server.api.responses.translate import NAMES, as_chat, as_messages
from server.api.schemas import ChatBody, parse, parse_value
from server.api.service import Service
from server.api.streaming import streamed, whole
from server.api.templates import chat_prompt
from server.api.translation import owner_of, renamed
from server.api.wire import json_response
from server.replay import journal
from server.replay.records import JournalError


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
            said, owner = messages + _said(document), owner_of(request)
            stored = Stored.of(document, _shown_input(body), said, owner)
            if not journal.keep(stored.encoded):
                store_of(request).put(stored)

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


async def compact(request: Request) -> Response:
    """POST /v1/responses/compact, which would be a response of this id to the routes above."""
    raise NotServed("Conversations are not compacted here.", status=404)


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
        before = _before(request, body.previous_response_id).messages
    return before + as_messages(body.input)


def _size(messages: list[dict[str, Any]]) -> int:
    """Characters of what was said, roughly; a conversation may be longer than any body."""
    return sum(len(str(message.get("content", ""))) for message in messages)


def _before(request: Request, response_id: str) -> Stored:
    """The response of this id, as the front door has kept it, or as it is kept here."""
    owner, kept = owner_of(request), journal.kept()
    if kept is None:
        return store_of(request).get(response_id, owner, PREVIOUS)
    try:
        stored = Stored.decoded(kept)
    except JournalError as error:
        raise InvalidRequest(str(error)) from error
    if (stored.id, stored.owner) != (response_id, owner):
        raise UnknownResponse(response_id, PREVIOUS)
    return stored


def _said(document: dict[str, Any]) -> list[dict[str, Any]]:
    """The output of a response as chat messages."""
    return as_messages(ResponsesBody(model="-", input=document["output"]).input)


def _shown_input(body: ResponsesBody) -> list[dict[str, Any]]:
    shown = [item.model_dump(exclude_none=True) for item in body.input]
    return [{"id": f"item_{number}", **item} for number, item in enumerate(shown)]
