"""The TLS contexts of a process: of the gateway towards clients, of a node towards the rest of the cluster."""

from __future__ import annotations

import socket
import ssl
from pathlib import Path

from config.tls import LAUNCHER, ClusterTlsConfig, TlsConfig
from server.tls.bare import member_context
from server.tls.check import Files, check_holder, check_signed
from server.tls.errors import TlsError
from server.tls.expiry import note_expiry
from server.tls.identity import Identity, Kind, identity_of, node


class ClusterTls:
    """One member of the cluster: contexts that show its certificate and take only those of the cluster's CA.

    Both sides show a certificate, and speak TLS 1.3.
    """

    def __init__(self, own: Identity, files: Files, ca: Path) -> None:
        """Raises TlsError if the files can't be used, or are another's."""
        self.own, self.ca, self.files = own, ca, files
        certificate = files.load()
        check_holder(certificate, files, own)
        check_signed(certificate, files, ca)
        note_expiry(certificate, files.certificate, files.setting)
        self.expires = certificate.not_valid_after_utc
        try:
            self.server, self.client = (
                member_context(protocol, files.certificate, files.key, ca)
                for protocol in (ssl.PROTOCOL_TLS_SERVER, ssl.PROTOCOL_TLS_CLIENT)
            )
        except OSError as error:
            raise TlsError(
                f"tls.cluster.certificate = {files.certificate}: can't be used: {error}."
            ) from error

    def serve(self, sock: socket.socket) -> ssl.SSLSocket:
        """The server's end of a connection; the handshake goes on with the first read."""
        return self.server.wrap_socket(sock, server_side=True, do_handshake_on_connect=False)

    def call(self, sock: socket.socket, name: str) -> ssl.SSLSocket:
        """The client's end of a connection to the node `name`; anybody else fails the handshake."""
        return self.client.wrap_socket(
            sock, server_hostname=node(name).dns_name, do_handshake_on_connect=False
        )

    def problem(self, sock: ssl.SSLSocket, name: str) -> str:
        """Why the caller at the other end is not the node `name`, or nothing; after the handshake."""
        caller = identity_of(sock.getpeercert())
        if caller == Identity(Kind.NODE, name):
            return ""
        return f"its certificate is of {caller or 'nobody of the cluster'}, not of node {name}"


def node_tls(config: TlsConfig, name: str) -> ClusterTls | None:
    """Of the node `name`; None where the cluster does without TLS.  Raises TlsError."""
    if not config.cluster.enabled:
        return None
    return ClusterTls(node(name), _files(config.cluster, name), config.cluster.ca_path)


def launcher_tls(config: TlsConfig) -> ClusterTls | None:
    """Of the launcher, which calls the nodes; None where the cluster does without TLS.  Raises TlsError."""
    if not config.cluster.enabled:
        return None
    own = Identity(Kind.LAUNCHER, LAUNCHER)
    return ClusterTls(own, _files(config.cluster, LAUNCHER), config.cluster.ca_path)


def _files(config: ClusterTlsConfig, name: str) -> Files:
    certificate, key = config.paths_of(name)
    return Files(certificate, key, "tls.cluster")
