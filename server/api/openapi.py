"""GET /openapi.json: what can be asked here, made from the types that validate and those that answers have."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import version
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema
from starlette.requests import Request
from starlette.responses import Response

from server.api import documents as shapes
from server.api.messages.schemas import CountBody, MessagesBody
from server.api.responses.schemas import ResponsesBody
from server.api.schemas import ChatBody, CompletionBody
from server.api.switching import SWITCH_PATH
from server.api.tokenization import DetokenizeBody, TokenizeBody
from server.api.wire import json_response
from server.failure import ANTHROPIC_ROUTES

Json = dict[str, Any]
JSON, EVENTS = "application/json", "text/event-stream"
LAST_EVENT = "[DONE]"
REF = "#/components/schemas/{model}"

ERRORS: Mapping[int, str] = {
    400: "A field is missing, wrong, or not supported; `param` names it.",
    401: "No key, or one that is not valid.",
    403: "The key's role, or the address, is not allowed.",
    404: "Nothing of this name or id is here.",
    405: "The path has no such method.",
    408: "The body did not come in time.",
    413: "The body is too large.",
    429: "The key has used up its rate.",
    431: "The header is too large.",
    500: "A fault of the server; the message has the request id.",
    503: "Not ready, overloaded, or the model is not loaded.",
}


@dataclass(frozen=True)
class Operation:
    """One method of one path.  `event`: of the stream that `stream: true` asks for."""

    method: str
    path: str
    summary: str
    answer: type[BaseModel] | None = None
    body: type[BaseModel] | None = None
    event: type[BaseModel] | None = None
    query: Sequence[Json] = ()
    open: bool = False  # without a key
    media: str = JSON  # of the answer
    done: bool = False  # a last event says that the stream is whole, and is no JSON


def _query(name: str, schema: Json) -> Json:
    return {"name": name, "in": "query", "required": False, "schema": schema}


ITEM_QUERY = (
    _query("order", {"enum": ["asc", "desc"], "default": "desc"}),
    _query("limit", {"type": "integer", "minimum": 1, "maximum": 100, "default": 20}),
    _query("after", {"type": "string"}),
)

OPERATIONS: tuple[Operation, ...] = (
    Operation(
        "post", "/v1/chat/completions", "Answer a conversation.",
        shapes.ChatCompletion, ChatBody, shapes.ChatChunk, done=True,
    ),
    Operation(
        "post", "/v1/completions", "Continue texts.",
        shapes.TextCompletion, CompletionBody, shapes.TextCompletion, done=True,
    ),
    Operation(
        "post", "/v1/responses", "Answer a conversation, in OpenAI's newer form.",
        shapes.ResponseDocument, ResponsesBody, shapes.ResponseEvent,
    ),
    Operation(
        "post", "/v1/responses/input_tokens", "Count the tokens of a conversation.",
        shapes.ResponseInputTokens, ResponsesBody,
    ),
    Operation("post", "/v1/responses/compact", "Refused: conversations are not compacted."),
    Operation("get", "/v1/responses/{response_id}", "A stored response.", shapes.ResponseDocument),
    Operation(
        "delete", "/v1/responses/{response_id}", "Forget a response.", shapes.DeletedResponse
    ),
    Operation(
        "get", "/v1/responses/{response_id}/input_items", "What a response was asked with.",
        shapes.InputItems, query=ITEM_QUERY,
    ),
    Operation(
        "post", "/v1/messages", "Answer a conversation, in Anthropic's form.",
        shapes.MessageDocument, MessagesBody, shapes.MessageEvent,
    ),
    Operation(
        "post", "/v1/messages/count_tokens", "Count the tokens of a conversation.",
        shapes.MessageTokens, CountBody,
    ),
    Operation("get", "/v1/models", "The configured models.", shapes.ModelList),
    Operation("get", "/v1/models/{model_id}", "One model.", shapes.ModelDocument),
    Operation("post", "/v1/embeddings", "Refused: the models served here have none."),
    Operation("post", "/tokenize", "A text or conversation as token ids.", shapes.Tokens, TokenizeBody),
    Operation("post", "/detokenize", "Token ids as a text.", shapes.Text, DetokenizeBody),
    Operation("get", SWITCH_PATH, "How far a switch of the model has come."),
    Operation("post", SWITCH_PATH, "Load another configured model in place of the loaded one."),
    Operation("get", "/v1/cluster", "The cluster and its ranks.", shapes.Cluster),
    Operation("get", "/v1/cluster/events", "What happens in the cluster, as events.", media=EVENTS),
    Operation("get", "/v1/cluster/timeline", "What each stage did when."),
    Operation("get", "/v1/cluster/logs", "What all ranks wrote into their logs."),
    Operation(
        "get", "/v1/cluster/config", "The settings in force.",
        query=(_query("prefix", {"type": "string"}),),
    ),
    Operation("patch", "/v1/cluster/config", "Change dynamic settings: all of the body's, or none."),
    Operation("delete", "/v1/requests/{request_id}", "End a request."),
    Operation("get", "/v1/access", "Whose key it is, and its role."),
    Operation("get", "/", "The dashboard, a page for browsers.", open=True, media="text/html"),
    Operation("get", "/dashboard/about.json", "Whether a key is needed; a launcher is here.", open=True),
    Operation("get", "/dashboard/{name}", "A file of the dashboard.", open=True, media="*/*"),
    Operation("get", "/health", "Whether the cluster works.", shapes.Health, open=True),
    Operation("get", "/ready", "Whether requests are welcome.", shapes.Health, open=True),
    Operation("get", "/metrics", "Prometheus metrics, as text.", media="text/plain"),
    Operation("get", "/openapi.json", "This document."),
)  # fmt: skip


async def show_openapi(request: Request) -> Response:
    """GET /openapi.json"""
    return json_response(document())


@lru_cache(maxsize=1)
def document() -> Json:
    """The whole document, OpenAPI 3.1."""
    paths: Json = {}
    for operation in OPERATIONS:
        paths.setdefault(operation.path, {})[operation.method] = _operation(operation)
    key = {"type": "http", "scheme": "bearer", "description": "Where keys are configured."}
    return {
        "openapi": "3.1.0",
        "info": {"title": "mlx-cluster", "version": version("mlx-cluster")},
        "paths": paths,
        "components": {"schemas": _schemas(), "securitySchemes": {"key": key}},
        "security": [{}, {"key": []}],
    }


def _schemas() -> Json:
    types: dict[type[BaseModel], None] = {shapes.ErrorDocument: None, shapes.AnthropicError: None}
    for operation in OPERATIONS:
        for found in (operation.answer, operation.body, operation.event):
            if found is not None:
                types[found] = None
    _, made = models_json_schema([(each, "validation") for each in types], ref_template=REF)
    schemas: Json = made["$defs"]
    return schemas


def _operation(operation: Operation) -> Json:
    names = re.findall(r"{(\w+)}", operation.path)
    path = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
        for name in names
    ]
    shown: Json = {
        "operationId": operation.method + re.sub(r"\W+", "_", operation.path),
        "summary": operation.summary,
        "parameters": [*path, *operation.query],
        "responses": _responses(operation),
    }
    if operation.body is not None:
        content = {JSON: {"schema": _ref(operation.body)}}
        shown["requestBody"] = {"required": True, "content": content}
    if operation.open:
        shown["security"] = []
    return shown


def _responses(operation: Operation) -> Json:
    error = _ref(_error_type(operation))
    if operation.open:
        error = {"anyOf": [_ref(shapes.Health), error]}
    refusals = {
        str(status): {"description": text, "content": {JSON: {"schema": error}}}
        for status, text in ERRORS.items()
    }
    return {"200": {"description": "The answer.", "content": _content(operation)}, **refusals}


def _content(operation: Operation) -> Json:
    if operation.media != JSON:
        return {operation.media: {"schema": {"type": "string"}}}
    answer: Json = {"type": "object"} if operation.answer is None else _ref(operation.answer)
    content: Json = {JSON: {"schema": answer}}
    if operation.event is not None:
        named = {"data": _event_data(operation), "event": {"type": "string"}}
        content[EVENTS] = {"schema": {"type": "object", "properties": named}}
    return content


def _event_data(operation: Operation) -> Json:
    event = {
        "type": "string",
        "contentMediaType": JSON,
        "contentSchema": _ref(operation.event) if operation.event else {},
    }
    return {"anyOf": [{"const": LAST_EVENT}, event]} if operation.done else event


def _error_type(operation: Operation) -> type[BaseModel]:
    if operation.path.startswith(ANTHROPIC_ROUTES):
        return shapes.AnthropicError
    return shapes.ErrorDocument


def _ref(kind: type[BaseModel]) -> Json:
    return {"$ref": REF.format(model=kind.__name__)}
