"""Access to the coordinator: the roles of its methods, kept by an interceptor, and what a caller sends along.

A caller brings either the cluster's signature (ranks and the launcher) or a key or token of a person.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import grpc

from config.access import AccessConfig
from server.access.audit import AuditEntry, AuditLog, moment
from server.access.cluster_secret import SCHEME, Signer, Verifier, read_secret
from server.access.errors import InsufficientRole, Refusal, Unauthorized
from server.access.policy import AccessPolicy, Credentials
from server.access.principal import ANYBODY, NOBODY, Principal
from server.access.private_file import version_of
from server.access.roles import RPC_TABLE

HEADER = "authorization"
RPC = "gRPC"  # the method of HTTP, in the audit log

# Gives the value of the header for a call of the method with that name.
Credential = Callable[[str], str]

_STATUS = {401: grpc.StatusCode.UNAUTHENTICATED, 403: grpc.StatusCode.PERMISSION_DENIED}


class AccessInterceptor(grpc.aio.ServerInterceptor):  # type: ignore[misc]
    """Lets calls through to the service, or ends them with UNAUTHENTICATED or PERMISSION_DENIED.

    verifier: of the cluster's signatures; None: ranks need none, where anybody was let in at the start.
    audit: gets what people do, and what is refused; not the calls of ranks.
    """

    def __init__(
        self, policy: AccessPolicy, verifier: Verifier | None, audit: AuditLog | None = None
    ) -> None:
        self._policy, self._verifier, self._audit = policy, verifier, audit

    async def intercept_service(self, continuation: Any, details: Any) -> Any:
        """See grpc.aio.ServerInterceptor."""
        handler = await continuation(details)
        if handler is None:  # no such method
            return None
        method = details.method.rpartition("/")[2]
        try:
            principal = await self._check(method, _values(details.invocation_metadata))
            self._write_down(method, principal, None)
        except Refusal as refusal:
            self._write_down(method, NOBODY, refusal)
            code = _STATUS.get(refusal.status, grpc.StatusCode.UNAVAILABLE)
            return _refusing(handler, code, refusal.message)
        return handler

    def _write_down(
        self, method: str, principal: Principal | None, refusal: Refusal | None
    ) -> None:
        if self._audit is not None and principal is not None:
            self._audit.write(
                AuditEntry(
                    time=moment(),
                    key=principal.id,
                    name=principal.name,
                    role=principal.role.label,
                    method=RPC,
                    route=method,
                    status=refusal.status if refusal else 200,
                    result="refused" if refusal else "ok",
                    code=refusal.code if refusal else None,
                )
            )

    async def _check(self, method: str, values: Sequence[str]) -> Principal | None:
        """Who calls; None: a rank.  Raises Refusal."""
        rule = RPC_TABLE.get(method)
        if rule is None:
            raise InsufficientRole(f"No rule says who may call {method}.")
        if rule.ranks and (self._policy.open or self._verifier is None):
            return None
        if self._policy.open:
            return ANYBODY
        if rule.ranks and self._verifier is not None and _is_signature(values):
            self._verifier.check(method, values[0])
            return None
        if rule.role is None:
            raise Unauthorized(
                f"{method} needs the signature of the cluster: each node needs a copy of the file "
                "access.cluster_secret_file of rank 0."
            )
        principal = await self._policy.authenticate(Credentials(values).one())
        if principal.role < rule.role:
            raise InsufficientRole(
                f"{method} needs the role {rule.role.label}; the key's is {principal.role.label}."
            )
        return principal


def _is_signature(values: Sequence[str]) -> bool:
    return len(values) == 1 and values[0].startswith(f"{SCHEME} ")


def _values(metadata: Any) -> list[str]:
    return [str(value) for name, value in metadata or () if name.lower() == HEADER]


def _refusing(handler: Any, code: Any, message: str) -> Any:
    """A handler of the same kind that ends every call.  Bytes pass through it unread."""

    async def refuse(_: Any, context: Any) -> None:
        await context.abort(code, message)

    async def refuse_stream(_: Any, context: Any) -> Any:
        await context.abort(code, message)
        yield  # makes it a generator: never reached

    if handler.response_streaming:
        return grpc.unary_stream_rpc_method_handler(refuse_stream)
    return grpc.unary_unary_rpc_method_handler(refuse)


def cluster_credential(config: AccessConfig) -> Credential | None:
    """What a rank or the launcher sends along; None where there is no secret, and nothing may be needed.

    Raises AccessError for a secret that can't be used.
    """
    path = Path(config.cluster_secret_file)
    return None if version_of(path) is None else Signer(read_secret(path)).sign


def key_credential(key: str) -> Credential:
    """What a person's program sends along."""
    return lambda _: f"Bearer {key}"


def client_interceptors(credential: Credential | None) -> list[Any]:
    """For grpc.aio channels: one for each kind of call that the coordinator has."""
    return [] if credential is None else [_SignUnary(credential), _SignStream(credential)]


class _SignUnary(grpc.aio.UnaryUnaryClientInterceptor):  # type: ignore[misc]
    def __init__(self, credential: Credential) -> None:
        self._credential = credential

    async def intercept_unary_unary(self, continuation: Any, details: Any, request: Any) -> Any:
        """See grpc.aio."""
        return await continuation(_signed(details, self._credential), request)


class _SignStream(grpc.aio.UnaryStreamClientInterceptor):  # type: ignore[misc]
    def __init__(self, credential: Credential) -> None:
        self._credential = credential

    async def intercept_unary_stream(self, continuation: Any, details: Any, request: Any) -> Any:
        """See grpc.aio."""
        return await continuation(_signed(details, self._credential), request)


def _signed(details: Any, credential: Credential) -> Any:
    path = details.method.decode() if isinstance(details.method, bytes) else details.method
    metadata = grpc.aio.Metadata(*(details.metadata or ()))
    metadata.add(HEADER, credential(path.rpartition("/")[2]))
    return details._replace(metadata=metadata)
