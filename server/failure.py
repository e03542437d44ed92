"""What a client sees of an error, in the shape of the API that it speaks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

ANTHROPIC_ROUTES = "/v1/messages"
ANTHROPIC_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}


@dataclass(frozen=True)
class Failure:
    """What a client sees of an error."""

    status: int
    message: str
    type: str
    param: str | None = None
    code: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)

    def body(self) -> dict[str, Any]:
        """As OpenAI has it."""
        error = {
            "message": self.message,
            "type": self.type,
            "param": self.param,
            "code": self.code,
        }
        return {"error": error}

    def anthropic_body(self, request_id: str) -> dict[str, Any]:
        """As Anthropic has it; param and code, which it does not know, are there as well."""
        default = "invalid_request_error" if self.status < 500 else "api_error"
        error = {
            "type": ANTHROPIC_TYPES.get(self.status, default),
            "message": self.message,
            "param": self.param,
            "code": self.code,
        }
        return {"type": "error", "error": error, "request_id": request_id}

    def body_for(self, path: str, request_id: str) -> dict[str, Any]:
        """The body in the shape of the API that has `path`."""
        if path == ANTHROPIC_ROUTES or path.startswith(ANTHROPIC_ROUTES + "/"):
            return self.anthropic_body(request_id)
        return self.body()
