"""POST /v1/messages and /v1/messages/count_tokens"""

from __future__ import annotations

import asyncio
from typing import TypeVar

from starlette.requests import Request
from starlette.responses import Response

from server.api.chat import ChatDialect, chat_specs
from server.api.errors import InvalidRequest
from server.api.generation import Job
from server.api.messages.dialect import MessagesDialect
from server.api.messages.schemas import CountBody, MessagesBody
from server.api.messages.translate import NAMES, as_chat
from server.api.schemas import ChatBody, parse, parse_value
from server.api.service import Service
from server.api.streaming import streamed, whole
from server.api.templates import chat_prompt
from server.api.translation import renamed
from server.api.wire import json_response

B = TypeVar("B", bound=CountBody)


async def create_message(request: Request) -> Response:
    """POST /v1/messages"""
    service: Service = request.app.state.service
    body, size = await _body(request, service, MessagesBody)
    model, generator = service.serving(body.model)
    with renamed(NAMES):
        chat = await asyncio.to_thread(parse_value, ChatBody, as_chat(body))
        chat_dialect = ChatDialect(model, chat)
        specs = await service.texts.run(size, chat_specs, chat, service, model, chat_dialect.id)
    job = Job(service, model, generator, specs)
    dialect = MessagesDialect(chat_dialect, job.prompt_tokens, request.state.request_id)
    if body.stream:
        return await streamed(request, job, dialect, service.keep_alive_interval)
    return await whole(request, job, dialect)


async def count_tokens(request: Request) -> Response:
    """POST /v1/messages/count_tokens"""
    service: Service = request.app.state.service
    body, size = await _body(request, service, CountBody)
    model, _ = service.serving(body.model)
    with renamed(NAMES):
        chat = await asyncio.to_thread(parse_value, ChatBody, as_chat(body))
        prompt = await service.texts.run(size, chat_prompt, chat, model)
    return json_response({"input_tokens": len(prompt)})


async def _body(request: Request, service: Service, kind: type[B]) -> tuple[B, int]:
    """The body, and its bytes."""
    raw = await service.bodies.read(request.headers, request.receive)
    body = await asyncio.to_thread(parse, kind, raw)
    service.note_unknown_fields(body.unknown_fields())
    choice = body.tool_choice
    if choice is not None and (choice.type == "tool") != (choice.name is not None):
        message = "tool_choice.name goes with the type tool, and with no other."
        raise InvalidRequest(message, param="tool_choice.name")
    return body, len(raw)
