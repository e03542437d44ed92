"""Certificates for tests: folders as scripts/certs makes them."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta, timezone
from pathlib import Path

from config.tls import TlsConfig
from server.tls.contexts import ClusterTls, node_tls
from server.tls.folder import Folder
from server.tls.identity import Identity, Kind

ENOUGH = 20.0  # seconds; a test that waits so long has failed


def make_folder(path: Path, nodes: Sequence[str] = ("n0", "n1"), days_ago: int = 0) -> Path:
    """A CA and certificates of nodes, the gateway, the launcher and the client `reader`."""
    folder = Folder(path, datetime.now(timezone.utc) - timedelta(days=days_ago))
    folder.init("test")
    for name in nodes:
        folder.add(Identity(Kind.NODE, name))
    folder.add(Identity(Kind.GATEWAY, "gateway"), ["127.0.0.1", "localhost"])
    folder.add(Identity(Kind.LAUNCHER, "launcher"))
    folder.add(Identity(Kind.CLIENT, "reader"))
    return path


def cluster_config(folder: Path, **more: object) -> TlsConfig:
    """Mutual TLS with the certificates of `folder`."""
    return TlsConfig.model_validate({"cluster": {"enabled": True, "folder": str(folder)}, **more})


def tls_of(folder: Path, name: str) -> ClusterTls:
    """What the node `name` has."""
    tls = node_tls(cluster_config(folder), name)
    assert tls is not None
    return tls


def shake_hands(
    serve: Callable[[socket.socket], ssl.SSLSocket], call: Callable[[socket.socket], ssl.SSLSocket]
) -> tuple[ssl.SSLSocket, ssl.SSLSocket]:
    """Both ends of a connection after one byte went each way; raises what the client or the server sees."""
    one, other = socket.socketpair()
    with ThreadPoolExecutor(1) as pool:
        served = pool.submit(_greet, one, serve)
        try:
            called = _greet(other, call)
        except OSError as error:
            other.close()
            raise served.exception(ENOUGH) or error from error
        return served.result(ENOUGH), called


def _greet(sock: socket.socket, wrap: Callable[[socket.socket], ssl.SSLSocket]) -> ssl.SSLSocket:
    sock.settimeout(ENOUGH)
    wrapped = wrap(sock)
    try:
        wrapped.do_handshake()
        wrapped.sendall(b"x")
        assert wrapped.recv(1) == b"x"
    except OSError:
        wrapped.close()
        raise
    return wrapped
