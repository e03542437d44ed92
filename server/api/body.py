"""Reading a request body of bounded size."""

from __future__ import annotations

from starlette.requests import Request

from server.api.errors import BodyTooLarge


async def read_body(request: Request, limit: int) -> bytes:
    """The body, if it has at most `limit` bytes; raises BodyTooLarge as soon as it is known to be longer."""
    too_large = BodyTooLarge(f"The body exceeds the limit of {limit} bytes.")
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > limit:
        raise too_large
    chunks, size = [], 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > limit:
            raise too_large
        chunks.append(chunk)
    return b"".join(chunks)
