"""Every refusal of access, in one tree, with what a client is told.

Refusal                  status, type, code, headers
├── Unauthorized         401 invalid_api_key
│   └── TokenExpired     401 token_expired
├── InsufficientRole     403 insufficient_role
├── AddressRefused       403 ip_not_allowed
├── OriginRefused        403 origin_not_allowed
├── HostRefused          421 host_not_allowed
├── UnknownRoute         404
├── WrongMethod          405, with Allow
├── RateLimited          429 rate_limit_exceeded, with Retry-After
└── VerifierBusy         503 overloaded, with Retry-After

AccessError              what makes access impossible as a whole: a broken file, no keys at all
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from server.failure import Failure


class AccessError(Exception):
    """Keys, tokens or secrets can't be used as configured.  One sentence for whoever runs the server."""


class Refusal(Exception):
    """A request that is not let in.  The message goes to the client and holds nothing of the credential."""

    status = 403
    type = "permission_error"
    code: str | None = None

    def __init__(self, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.headers: Mapping[str, str] = headers or {}

    @property
    def failure(self) -> Failure:
        """What the client sees."""
        return Failure(self.status, self.message, self.type, None, self.code, self.headers)


class Unauthorized(Refusal):
    """No credential, or one that is not known."""

    status = 401
    type = "invalid_request_error"
    code = "invalid_api_key"

    def __init__(self, message: str) -> None:
        super().__init__(message, {"www-authenticate": "Bearer"})


class TokenExpired(Unauthorized):
    """The key or token was good once."""

    code = "token_expired"


class InsufficientRole(Refusal):
    """The credential is good, and not enough for this."""

    code = "insufficient_role"


class AddressRefused(Refusal):
    """The client's address is not on the list."""

    code = "ip_not_allowed"


class OriginRefused(Refusal):
    """A page in a browser that is none of this server's, where no key is asked for."""

    code = "origin_not_allowed"


class HostRefused(Refusal):
    """Called by a name that is none of this server's, where no key is asked for."""

    status = 421
    type = "invalid_request_error"
    code = "host_not_allowed"


class UnknownRoute(Refusal):
    """No rule speaks of this path, so nothing behind it is shown."""

    status = 404
    type = "invalid_request_error"


class WrongMethod(Refusal):
    """The path has rules, but not for this method."""

    status = 405
    type = "invalid_request_error"


class RateLimited(Refusal):
    """The key has used what it may; `retry_after` seconds from now it may go on."""

    status = 429
    type = "rate_limit_error"
    code = "rate_limit_exceeded"

    def __init__(self, message: str, retry_after: float) -> None:
        super().__init__(message, {"retry-after": str(max(1, math.ceil(retry_after)))})
        self.retry_after = retry_after


class VerifierBusy(Refusal):
    """Too many keys are being verified for the first time."""

    status = 503
    type = "server_error"
    code = "overloaded"

    def __init__(self) -> None:
        super().__init__("Too many keys are being verified; try again.", {"retry-after": "1"})
