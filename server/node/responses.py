"""Error bodies of the node's own ports, in the shape of the OpenAI API."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from uuid import uuid4

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

RETRY_AFTER_S = 2  # an election or a load takes seconds; clients of OpenAI's API wait as told
REQUEST_ID = "x-request-id"

ExceptionHandler = Callable[[Request, Exception], Response | Awaitable[Response]]


def error_body(message: str, kind: str, code: str | None) -> dict[str, object]:
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}


def error_response(
    status: int,
    message: str,
    kind: str = "invalid_request_error",
    code: str | None = None,
    headers: Mapping[str, str] | None = None,
) -> JSONResponse:
    return JSONResponse(error_body(message, kind, code), status, headers)


def not_ready(message: str, code: str = "not_ready") -> JSONResponse:
    """503 that tells the client to come back."""
    retry = {"retry-after": str(RETRY_AFTER_S)}
    return error_response(503, message, "server_error", code, retry)


async def http_error(request: Request, error: Exception) -> Response:
    """Starlette's own refusals (unknown path, wrong method) with an error body."""
    assert isinstance(error, HTTPException)
    message = f"{request.method} {request.url.path}: {error.detail}"
    return error_response(error.status_code, message, headers=error.headers)


async def internal_error(request: Request, error: Exception) -> Response:
    """A bug; the traceback goes to the log under the request's id."""
    request_id = request.headers.get(REQUEST_ID) or uuid4().hex
    return error_response(
        500,
        f"internal error in request {request_id}",
        "server_error",
        "internal_error",
        {REQUEST_ID: request_id},
    )


EXCEPTION_HANDLERS: Mapping[int | type[Exception], ExceptionHandler] = {
    HTTPException: http_error,
    Exception: internal_error,
}
