"""gRPC between members of the cluster: credentials of both sides, and who a caller is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import grpc

from server.tls.contexts import ClusterTls
from server.tls.errors import TlsError
from server.tls.identity import Identity, identity_in, node

_NAMES = "x509_subject_alternative_name"


def server_credentials(tls: ClusterTls) -> Any:
    """Of a server that wants a certificate of the cluster from everybody."""
    key, certificate, ca = _contents(tls)
    return grpc.ssl_server_credentials(
        [(key, certificate)], root_certificates=ca, require_client_auth=True
    )


@dataclass(frozen=True)
class ClientTls:
    """How a client calls one node, whatever its address: with anybody else the handshake fails."""

    tls: ClusterTls
    callee: str  # name of the node

    def credentials(self) -> Any:
        """Of the channel."""
        key, certificate, ca = _contents(self.tls)
        return grpc.ssl_channel_credentials(ca, key, certificate)

    def options(self) -> tuple[tuple[str, str], ...]:
        """Of the channel, beside others."""
        return (("grpc.ssl_target_name_override", node(self.callee).dns_name),)


def caller_of(context: Any) -> Identity | None:
    """Who calls, as the certificate says; None without one."""
    names = context.auth_context().get(_NAMES, ())
    return identity_in(name.decode("utf-8", "replace") for name in names)


def _contents(tls: ClusterTls) -> tuple[bytes, bytes, bytes]:
    try:
        return tls.files.key.read_bytes(), tls.files.certificate.read_bytes(), tls.ca.read_bytes()
    except OSError as error:
        raise TlsError(f"{error.filename}: can't be read: {error.strerror}.") from error
