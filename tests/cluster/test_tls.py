"""A cluster with certificates on every connection: it answers as without, and to nobody else."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.cluster.harness import HOST, Spec, folder_model
from tests.cluster.tiny import make_folder
from tests.cluster.tls import TlsCluster

PROMPT = (3, 1, 4, 1, 5, 9, 2, 6)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("model"), "llama")


@pytest.fixture(scope="module")
def cluster(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TlsCluster]:
    spec = Spec(ranks=2, models=folder_model(model))
    cluster = TlsCluster(spec, tmp_path_factory.mktemp("tls"))
    try:
        yield cluster.start().wait_ready()
        cluster.stop()
    finally:
        cluster.kill()


def test_it_answers_on_the_gateway_and_to_members_on_the_ports_of_nodes(
    cluster: TlsCluster,
) -> None:
    text = cluster.complete(PROMPT, 8)["text"]
    assert text
    body = cluster.body(PROMPT, 8)
    for rank in (0, 1):  # rank 1 forwards
        answer = cluster.ask_node(rank, "POST", 0, "/v1/completions", json=body)
        assert answer.json()["choices"][0]["text"] == text
        assert cluster.health(rank)["state"] == "ready"


def test_without_a_certificate_no_port_of_a_node_gets_past_the_handshake(
    cluster: TlsCluster,
) -> None:
    for port in [cluster.ports.coordinator, *(p for node in cluster.ports.nodes for p in node)]:
        if port in {node[1] for node in cluster.ports.nodes}:
            continue  # frames: nobody listens once the ring has joined
        assert told(port, stranger(cluster)) == b"", port
        assert told(port, cluster.reader) != b"", port


def stranger(cluster: TlsCluster) -> ssl.SSLContext:
    """It believes whom it speaks to, and shows nothing of its own."""
    return ssl.create_default_context(cafile=str(cluster.certificates / "ca.pem"))


def told(port: int, context: ssl.SSLContext) -> bytes:
    """What a port says beyond the handshake; nothing where it ends there."""
    context.check_hostname = False
    context.set_alpn_protocols(["h2", "http/1.1"])
    with (
        socket.create_connection((HOST, port), timeout=20) as sock,
        context.wrap_socket(sock) as wrapped,
    ):
        try:
            wrapped.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
            return wrapped.recv(100)
        except (ssl.SSLError, ConnectionError):
            return b""


def test_who_speaks_no_tls_is_not_understood(cluster: TlsCluster) -> None:
    for address in (cluster.ports.gateway, cluster.ports.nodes[1][0], cluster.ports.nodes[0][2]):
        with pytest.raises(httpx.TransportError):
            httpx.get(f"http://{HOST}:{address}/health")
