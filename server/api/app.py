"""The ASGI application of the OpenAI API."""

from __future__ import annotations

from collections.abc import Sequence

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect
from starlette.routing import BaseRoute, Route

from pipeline.errors import PipelineError
from server.access.errors import Refusal
from server.access.middleware import AccountMiddleware, Guard
from server.api.chat import chat_completions
from server.api.completions import completions
from server.api.errors import ApiError, respond
from server.api.messages.routes import count_tokens, create_message
from server.api.models import list_models, show_model, switch_model
from server.api.openapi import show_openapi
from server.api.outer import guarded, outermost
from server.api.responses.routes import compact, count_input_tokens, create_response
from server.api.responses.store import ResponseStore
from server.api.responses.stored import stored_routes
from server.api.service import Service
from server.api.switching import SWITCH_PATH
from server.api.tokenization import detokenize, embeddings, tokenize
from server.replay.middleware import JournalMiddleware

# `Exception` is for what nobody foresaw: Starlette answers with it, then raises it for the server to log.
HANDLED = (ApiError, Refusal, PipelineError, HTTPException, ClientDisconnect, Exception)


def create_app(
    service: Service, extra_routes: Sequence[BaseRoute] = (), guard: Guard | None = None
) -> Starlette:
    """The application over `service`.

    extra_routes: tried first; their handlers may raise ApiError and find the service in `request.app.state`.
    guard: who is let in; None: everybody.
    """
    routes = [
        *extra_routes,
        Route("/v1/chat/completions", chat_completions, methods=["POST"]),
        Route("/v1/completions", completions, methods=["POST"]),
        Route("/v1/responses", create_response, methods=["POST"]),
        Route("/v1/responses/input_tokens", count_input_tokens, methods=["POST"]),
        Route("/v1/responses/compact", compact, methods=["POST"]),
        *stored_routes(),
        Route("/v1/messages", create_message, methods=["POST"]),
        Route("/v1/messages/count_tokens", count_tokens, methods=["POST"]),
        Route("/v1/embeddings", embeddings, methods=["POST"]),
        Route("/tokenize", tokenize, methods=["POST"]),
        Route("/detokenize", detokenize, methods=["POST"]),
        Route("/openapi.json", show_openapi, methods=["GET"]),
        Route(SWITCH_PATH, switch_model, methods=["GET", "POST"]),
        Route("/v1/models", list_models, methods=["GET"]),
        Route("/v1/models/{model_id:path}", show_model, methods=["GET"]),
    ]
    app = Starlette(
        routes=routes,
        middleware=[
            *outermost(service.cors_origins),
            *guarded(guard),
            Middleware(JournalMiddleware),
            Middleware(AccountMiddleware),
        ],
        exception_handlers=dict.fromkeys(HANDLED, respond),
    )
    # A redirect would name this rank's own address, also to clients of the other nodes.
    app.router.redirect_slashes = False
    app.state.service = service
    app.state.responses = ResponseStore()
    return app
