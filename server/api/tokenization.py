"""POST /tokenize and /detokenize, in vLLM's shapes; and /v1/embeddings, which is refused."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

from pydantic import Field, StrictBool, StrictStr
from starlette.requests import Request
from starlette.responses import Response

from server.api import params
from server.api.errors import InvalidRequest, NotServed
from server.api.fields import MAX_ITEMS, Natural, Part, only
from server.api.schemas import ChatBody, Message, parse, parse_value
from server.api.service import ServedModel, Service
from server.api.templates import chat_prompt
from server.api.wire import json_response

MAX_TOKENS = 1 << 20


class TokenizeBody(Part):
    """A text, or messages as Chat Completions takes them."""

    model: StrictStr | None = None  # left out: the loaded one
    prompt: StrictStr | None = None
    messages: Annotated[list[Message], Field(max_length=MAX_ITEMS, fail_fast=True)] | None = None
    add_special_tokens: StrictBool | None = None
    return_token_strs: StrictBool | None = None
    tools: list[dict[str, Any]] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    add_generation_prompt: Annotated[Any, only(True)] = None
    continue_final_message: Annotated[Any, only(False)] = None


class DetokenizeBody(Part):
    model: StrictStr | None = None
    tokens: Annotated[list[Natural], Field(max_length=MAX_TOKENS, fail_fast=True)]


async def tokenize(request: Request) -> Response:
    """POST /tokenize"""
    service: Service = request.app.state.service
    raw = await service.bodies.read(request.headers, request.receive)
    body = await asyncio.to_thread(parse, TokenizeBody, raw)
    service.note_unknown_fields(body.unknown_fields())
    model = _model(service, body.model)
    return await service.texts.run(len(raw), _tokenized, body, model)


async def detokenize(request: Request) -> Response:
    """POST /detokenize"""
    service: Service = request.app.state.service
    raw = await service.bodies.read(request.headers, request.receive)
    body = await asyncio.to_thread(parse, DetokenizeBody, raw)
    service.note_unknown_fields(body.unknown_fields())
    model = _model(service, body.model)
    return await service.texts.run(len(raw), _detokenized, body, model)


async def embeddings(request: Request) -> Response:
    """POST /v1/embeddings: the hidden states of a generative model are no embeddings that anybody measured."""
    service: Service = request.app.state.service
    await service.bodies.read(request.headers, request.receive)
    name = "The loaded model" if service.model is None else f"The model {service.model.id!r}"
    raise NotServed(f"{name} generates text and was not trained to embed it: no embeddings here.")


def _model(service: Service, name: str | None) -> ServedModel:
    if name is None and service.model is not None:
        name = service.model.id
    model, _ = service.serving(name or "")
    return model


# In threads: a body may hold millions of tokens, for which nobody else is to wait.


def _tokenized(body: TokenizeBody, model: ServedModel) -> Response:
    tokens = _tokens(body, model)
    strings = None
    if body.return_token_strs:
        strings = [model.tokenizer.convert_ids_to_tokens(token) for token in tokens]
    return json_response(
        {
            "count": len(tokens),
            "max_model_len": model.max_model_len,
            "tokens": tokens,
            "token_strs": strings,
        }
    )


def _detokenized(body: DetokenizeBody, model: ServedModel) -> Response:
    params.check_ids(body.tokens, model, "tokens")
    return json_response({"prompt": model.tokenizer.decode(body.tokens)})


def _tokens(body: TokenizeBody, model: ServedModel) -> list[int]:
    if (body.prompt is None) == (body.messages is None):
        raise InvalidRequest("Either prompt or messages must be given.", param="prompt")
    if body.prompt is not None:
        special = body.add_special_tokens is not False
        return list(model.tokenizer.encode(body.prompt, add_special_tokens=special))
    if body.add_special_tokens:
        message = "add_special_tokens: the chat template decides which tokens begin a conversation."
        raise InvalidRequest(message, param="add_special_tokens")
    fields = {
        "messages": body.messages,
        "tools": body.tools,
        "chat_template_kwargs": body.chat_template_kwargs,
    }
    chat = parse_value(ChatBody, {"model": model.id, **fields})
    return list(chat_prompt(chat, model))
