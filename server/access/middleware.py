"""Access in front of an ASGI application: who asks, may they, within which limits; and a line for the audit.

Bodies pass through as they are, in both directions: nothing is held back.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import msgspec
import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.access.account import Account, current, enter
from server.access.addresses import Address, parse_address
from server.access.audit import AuditEntry, AuditLog, moment
from server.access.errors import AddressRefused, Refusal, Unauthorized
from server.access.limits import Limiter
from server.access.pages import Pages
from server.access.policy import AccessPolicy, Credentials
from server.access.principal import NOBODY, Principal
from server.access.roles import Rule
from server.observe.errors import count_error
from server.replay.records import HEADER as JOURNAL_HEADER
from server.replay.records import KEPT_HEADER, Context, JournalError

UNKNOWN = "-"
METHODS = frozenset(
    ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]
)  # a client may invent others

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Guard:
    """What the middleware works with; without limiter and audit it only lets in or refuses.

    only_refusals: what is let in is counted and written down by somebody else, but for the paths `answered`.
    supervised: a front door passes requests on, and may go on with a response.
    """

    policy: AccessPolicy
    limiter: Limiter | None = None
    audit: AuditLog | None = None
    only_refusals: bool = False
    answered: frozenset[str] = frozenset()
    supervised: bool = True
    pages: Pages = field(default_factory=Pages)
    clock: Callable[[], float] = time.monotonic


class AccessMiddleware:
    """Sets `request.state.principal`.  Below it must be the middleware that sets `request.state.request_id`."""

    def __init__(self, app: ASGIApp, guard: Guard) -> None:
        self._app, self._guard = app, guard

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            await _Visit(self._guard, scope, send).run(self._app, receive)
        else:  # nothing here speaks WebSocket, and no rule would hold for it
            await send({"type": "websocket.close", "code": 1008})


class AccountMiddleware:
    """Next to the routes: notes the status, and tells what is left of the limits.

    Between it and AccessMiddleware a response may be wrapped for a front door, which has to get these headers
    as a part of it.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        account = current()

        async def send_on(message: Message) -> None:
            if message["type"] == "http.response.start":
                account.status = message["status"]
                MutableHeaders(scope=message).update(account.headers())
            await send(message)

        await self._app(scope, receive, send_on if scope["type"] == "http" else send)


class _Visit:
    """One request on its way through."""

    def __init__(self, guard: Guard, scope: Scope, send: Send) -> None:
        self._guard, self._scope, self._send = guard, scope, send
        self._headers = Headers(scope=scope)
        self._rule: Rule | None = guard.policy.rule(scope["method"], scope["path"])
        self._account = Account(NOBODY, clock=guard.clock)
        self._client: Address | None = None
        self._code: str | None = None
        self._ended = self._refused = False

    async def run(self, app: ASGIApp, receive: Receive) -> None:
        began = self._guard.clock()
        try:
            try:
                principal = await self._admit()
            except Refusal as refusal:
                await self._refuse(refusal)
                return
            self._scope.setdefault("state", {})["principal"] = principal
            enter(self._account)
            await app(self._scope, receive, self._send_on)
        finally:
            self._write_down(self._guard.clock() - began)

    async def _admit(self) -> Principal:
        guard, policy, headers = self._guard, self._guard.policy, self._headers
        peer = parse_address(f"[{self._scope['client'][0]}]") if self._scope.get("client") else None
        self._client = policy.locate(peer, headers.getlist("x-forwarded-for"))
        policy.check_address(peer, self._client, self._rule)
        if policy.open:
            guard.pages.check(self._scope["method"], headers)
        given = Credentials(headers.getlist("authorization"), headers.getlist("x-api-key"))
        principal = await policy.admit(
            self._scope["method"], self._scope["path"], self._rule, given
        )
        # Where nobody is asked for a key, all would share one state.
        limiter = None if policy.open or not self._is_answered_here else guard.limiter
        counted = self._rule is not None and self._rule.counted
        self._account = Account(principal, limiter, guard.clock, counted)
        goes_on = self._goes_on(peer)
        if limiter is not None and counted and not goes_on:
            limiter.count_request(principal, guard.clock())
        return principal

    @property
    def _is_answered_here(self) -> bool:
        guard, rule = self._guard, self._rule
        return not guard.only_refusals or (rule is not None and rule.path in guard.answered)

    def _goes_on(self, peer: Address | None) -> bool:
        """Whether the front door repeats a request that was counted when it came.

        Raises AddressRefused for anybody else who does so, or tells what was kept of another response: what is
        told is long, and is read before it can be looked at.
        """
        asked, kept = self._headers.get(JOURNAL_HEADER), self._headers.get(KEPT_HEADER)
        try:
            goes_on = asked is not None and Context.parse(asked)[1] > 0
        except JournalError:
            goes_on = False  # refused by whoever reads it
        guard = self._guard
        near = peer is not None and (peer.is_loopback or peer in guard.policy.trusted)
        if (goes_on or kept is not None) and not (near and guard.supervised):
            raise AddressRefused(
                "Only the launcher goes on with a response; access.trusted_proxies may name its address."
            )
        return goes_on

    async def _refuse(self, refusal: Refusal) -> None:
        request_id = self._scope.get("state", {}).get("request_id", "")
        failure = refusal.failure.body_for(self._scope["path"], request_id)
        body = msgspec.json.encode(failure)
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
            *((name.encode(), value.encode()) for name, value in refusal.headers.items()),
            *((name.encode(), value.encode()) for name, value in self._account.headers().items()),
        ]
        self._refused, self._code = True, refusal.code
        count_error(refusal.failure.type, refusal.code)
        log_refusal(refusal, self._client)
        await self._send_on(
            {"type": "http.response.start", "status": refusal.status, "headers": headers}
        )
        await self._send_on({"type": "http.response.body", "body": body})

    async def _send_on(self, message: Message) -> None:
        if message["type"] == "http.response.start" and not self._account.status:
            self._account.status = message["status"]  # of an application without AccountMiddleware
        elif message["type"] == "http.response.body":
            self._ended = not message.get("more_body", False)
        await self._send(message)

    def _write_down(self, seconds: float) -> None:
        audit, account = self._guard.audit, self._account
        if audit is None or not (self._is_answered_here or self._refused):
            return
        state, method = self._scope.get("state", {}), self._scope["method"]
        audit.write(
            AuditEntry(
                time=moment(),
                request_id=state.get("request_id", ""),
                key=account.principal.id,
                name=account.principal.name,
                role=account.principal.role.label,
                address="" if self._client is None else str(self._client),
                method=method if method in METHODS else UNKNOWN,
                route=self._rule.path if self._rule else UNKNOWN,
                status=account.status,
                result=self._result(),
                code=self._code,
                prompt_tokens=account.prompt_tokens,
                completion_tokens=account.completion_tokens,
                seconds=round(seconds, 4),
            )
        )

    def _result(self) -> str:
        if not self._ended:
            return "cancelled"
        if self._account.status < 400:
            return "failed" if self._account.failed else "ok"
        return "refused" if self._account.status < 500 else "failed"


def log_refusal(refusal: Refusal, client: Address | None) -> None:
    """Repeated guesses are worth a line; of the credential nothing is shown."""
    if isinstance(refusal, Unauthorized):
        log.info("not let in", code=refusal.code, address=str(client))
