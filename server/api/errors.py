"""Every error of the HTTP API, in one tree, and the one place where errors become responses.

    ApiError                  status, type, code, param, message
    ├── InvalidRequest        400, names the field in `param`
    ├── UnknownModel          404 model_not_found
    ├── BodyTooLarge          413 request_too_large
    ├── BodyStalled           408, closes the connection
    ├── HeadersTooLarge       431 request_too_large, closes the connection
    ├── Overloaded            503 overloaded, with Retry-After
    ├── NotReady              503 not_ready, with Retry-After
    ├── NotLoaded             503 model_not_loaded
    └── NotServed             400 unsupported_endpoint

Refusals of access (`server.access.errors`), errors of the engine (`pipeline.errors`) and of routing
(`HTTPException`) keep their own types; `failure_of` knows what each of them means to a client.
"""

from __future__ import annotations

import reprlib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import structlog
from pydantic import ValidationError
from pydantic_core import ErrorDetails
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from pipeline.errors import (
    ConstraintRefused,
    ContextTooLong,
    EngineStopped,
    PipelineError,
    QueueFull,
    RequestCancelled,
)
from server.access.errors import Refusal
from server.access.redaction import loggable
from server.api.wire import to_json
from server.failure import Failure
from server.observe.errors import count_error

RETRY_AFTER_S = 2
_HEADERS: Mapping[int, Mapping[str, str]] = {
    408: {"connection": "close"},  # the rest of the body may never come
    431: {"connection": "close"},
    503: {"retry-after": str(RETRY_AFTER_S)},
}
SWITCH_RETRY_S = 10
SWITCH_HEADER = "x-mlxc-switch-model"  # tells the launcher's front door which model is wanted
CLIENT_CLOSED_REQUEST = 499  # nobody reads it, it is for the access log

__all__ = ["ApiError", "Failure", "failure_of", "invalid_field", "respond"]

log = structlog.get_logger(__name__)


class ApiError(Exception):
    """An error with a fixed meaning for the client."""

    may_quote = True  # what the client has sent
    status = 500
    type = "server_error"
    code: str | None = None

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.code = code or self.code


class InvalidRequest(ApiError):
    """The request can't be served as it stands, and will never be."""

    status = 400
    type = "invalid_request_error"


class UnknownModel(ApiError):
    """The request asks for a model that is not served here."""

    status = 404
    type = "invalid_request_error"
    code = "model_not_found"


class BodyTooLarge(ApiError):
    """The request body exceeds the configured limit."""

    status = 413
    type = "invalid_request_error"
    code = "request_too_large"


class BodyStalled(ApiError):
    """The client sends its body too slowly, or not at all."""

    status = 408
    type = "invalid_request_error"


class HeadersTooLarge(ApiError):
    """More headers, or a longer target, than any client needs."""

    status = 431
    type = "invalid_request_error"
    code = "request_too_large"


class Overloaded(ApiError):
    """Too many requests at once, or no first token in time."""

    status = 503
    code = "overloaded"


class NotReady(ApiError):
    """The model is not serving yet, or no more."""

    status = 503
    code = "not_ready"


class NotLoaded(ApiError):
    """A configured model that is not the loaded one."""

    status = 503
    code = "model_not_loaded"

    def __init__(
        self, message: str, model: str, *, retry_s: int | None = None, switch: bool = False
    ) -> None:
        """retry_s: seconds after which it may be loaded; None: not by itself.

        switch: the launcher is to load it now.
        """
        super().__init__(message, param="model")
        self.model, self.retry_s, self.switch = model, retry_s, switch

    @property
    def headers(self) -> Mapping[str, str]:
        """Trying again helps only where the model may be on its way; OpenAI's clients heed the last header."""
        if self.retry_s is not None:
            switch = {SWITCH_HEADER: self.model} if self.switch else {}
            return {"retry-after": str(self.retry_s), **switch}
        return {"x-should-retry": "false"}


class NotServed(ApiError):
    """An endpoint of OpenAI's that this server knows and does not have."""

    status = 400
    type = "invalid_request_error"
    code = "unsupported_endpoint"

    def __init__(self, message: str, *, status: int = 400) -> None:
        super().__init__(message)
        self.status = status


def failure_of(exc: Exception, request_id: str) -> Failure:
    """What `exc` means to the client of the request `request_id`.

    Anything unforeseen is a 500 that names the request id and nothing of the inside.
    """
    if isinstance(exc, ApiError):
        headers = exc.headers if isinstance(exc, NotLoaded) else _HEADERS.get(exc.status, {})
        return Failure(exc.status, exc.message, exc.type, exc.param, exc.code, headers)
    if isinstance(exc, Refusal):
        return exc.failure
    if isinstance(exc, PipelineError):
        return _engine_failure(exc, request_id)
    if isinstance(exc, HTTPException):
        return _routing_failure(exc)
    if isinstance(exc, ClientDisconnect):
        return Failure(
            CLIENT_CLOSED_REQUEST, "The client closed the connection.", "invalid_request_error"
        )
    return _internal_error(request_id)


def _engine_failure(exc: PipelineError, request_id: str) -> Failure:
    if isinstance(exc, ContextTooLong):
        return Failure(400, str(exc), "invalid_request_error", code="context_length_exceeded")
    if isinstance(exc, ConstraintRefused):
        return Failure(400, str(exc), "invalid_request_error", code="constraint_failed")
    retry = {"retry-after": str(RETRY_AFTER_S)}
    if isinstance(exc, RequestCancelled):
        # Clients repeat what ends with 409 or 5xx by themselves.
        return Failure(
            CLIENT_CLOSED_REQUEST, str(exc), "invalid_request_error", code="request_cancelled"
        )
    if isinstance(exc, QueueFull):
        return Failure(503, str(exc), "server_error", code="overloaded", headers=retry)
    if isinstance(exc, EngineStopped):
        return Failure(503, str(exc), "server_error", code="not_ready", headers=retry)
    return _internal_error(request_id)


def _routing_failure(exc: HTTPException) -> Failure:
    kind = "invalid_request_error" if exc.status_code < 500 else "server_error"
    return Failure(exc.status_code, exc.detail, kind, headers=exc.headers or {})


def _internal_error(request_id: str) -> Failure:
    message = f"The server had an error while serving this request (request id {request_id})."
    return Failure(500, message, "server_error", code="internal_error")


async def respond(request: Request, exc: Exception) -> Response:
    """The exception handler of the application, for every kind of exception."""
    request_id = request.state.request_id
    failure = failure_of(exc, request_id)
    if isinstance(exc, HTTPException):
        failure = replace(failure, message=f"{request.method} {request.url.path}: {exc.detail}.")
    count_error(failure.type, failure.code)
    if failure.code == "internal_error":
        # A fault of the engine hits all requests at once, and whoever found it shows where.
        known = isinstance(exc, (PipelineError, ApiError))
        details = {"reason": loggable(exc)} if known else {"exc_info": exc}
        log.error("request failed", request_id=request_id, **details)
    return Response(
        to_json(failure.body_for(request.url.path, request_id)),
        status_code=failure.status,
        media_type="application/json",
        # Set here too: an unforeseen error is answered outside of the middleware that sets it.
        headers={**failure.headers, "x-request-id": request_id},
    )


def invalid_field(error: ValidationError, value: Any) -> InvalidRequest:
    """The first problem that pydantic found in `value`, as a sentence with the path of the field."""
    found = error.errors(include_url=False)
    # A field that is refused explains more than another one that is missing because of it.
    details = next((each for each in found if each["type"] == "unsupported"), found[0])
    path = ".".join(_fields(details["loc"], value))
    code = "unsupported_parameter" if details["type"] == "unsupported" else None
    return InvalidRequest(_sentence(path, details), param=path or None, code=code)


def _fields(location: tuple[int | str, ...], value: Any) -> Iterator[str]:
    """The path without the names that pydantic gives to the alternatives of a union."""
    for place, part in enumerate(location, start=1):
        if isinstance(value, dict):
            if part not in value and place < len(location):
                continue
            value = value.get(part)
        elif isinstance(value, list) and isinstance(part, int) and part < len(value):
            value = value[part]
        else:
            value = None
        yield str(part)


def _sentence(path: str, details: ErrorDetails) -> str:
    if details["type"] == "missing":
        return f"{path} is required."
    if details["type"] == "model_type":
        return f"{path} must be an object."
    problem = details["msg"]
    if details["type"] in {"unsupported", "value_error", "bad_value"}:
        return f"{path}: {problem}."
    # reprlib: the input may be a list of millions.
    given = reprlib.repr(details["input"])
    return f"{path}: {problem[:1].lower()}{problem[1:]}, got {given}."
