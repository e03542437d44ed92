"""A cluster with TLS on every connection: it answers as without, to nobody else, and nobody can listen."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Sequence
from pathlib import Path

import httpx
import msgspec
import psutil
import pytest

from tests.cluster.capture import Capture, Flow, require_capture, where
from tests.cluster.conftest import Start
from tests.cluster.harness import HOST, Cluster, is_running, wait_until
from tests.cluster.tiny import word
from tests.cluster.tls import TlsCluster, two_ranks

PROMPT = (3, 1, 4, 1, 5, 9, 2, 6)

# Of a kind that no other test asks for, should one run at the same time.  Its hidden states fit into no frame.
SECRET = (
    91,
    7,
    83,
    2,
    64,
    90,
    11,
    73,
    5,
    88,
    19,
    42,
    77,
    8,
    55,
    31,
    96,
    14,
    60,
    29,
    81,
    3,
    70,
    45,
) * 13
HIDDEN = 4 * 64  # bytes of the hidden state of a token of the tiny model
PIECE = 32  # bytes of a hidden state that are looked for


@pytest.fixture
def cluster(tls_two: TlsCluster) -> TlsCluster:
    return tls_two


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


# what can be heard


def ask_secret(cluster: Cluster) -> str:
    """A completion of the secret prompt, given as text; the answer has a secret of its own."""
    text = " ".join(word(token) for token in SECRET)
    answer = cluster.http.post("/v1/completions", json=cluster.body([], 8) | {"prompt": text})
    assert answer.status_code == 200, answer.text
    return str(answer.json()["choices"][0]["text"])


def secrets() -> dict[str, bytes]:
    """What the prompt looks like on its ways."""
    tokens = SECRET[:-1]  # those of the prefill; the last one goes with the first decoding step
    return {
        "text": " ".join(word(token) for token in SECRET).encode(),
        "frames": msgspec.msgpack.encode(tokens)[3:],
        "int32": b"".join(token.to_bytes(4, "little") for token in tokens),
        "int64": b"".join(token.to_bytes(8, "little") for token in tokens),
    }


def pieces(data: bytes) -> set[bytes]:
    """Of all hidden states in a flow of the ring."""
    found = {data[at : at + PIECE] for at in range(0, len(data) - PIECE, PIECE)}
    return {piece for piece in found if len(set(piece)) > PIECE // 2}  # numbers, no filling


def of_ring(flows: dict[Flow, bytes], ports: Sequence[int]) -> bytes:
    """What went to the addresses of MLX's ring."""
    return b"".join(data for flow, data in flows.items() if flow.target in ports)


def test_nothing_can_be_read_on_the_loopback_interface(
    cluster: TlsCluster, tiny_model: Path, start: Start
) -> None:
    require_capture()
    plain = start(two_ranks(tiny_model)).wait_ready()
    listening = Capture()
    answer = ask_secret(plain)
    clear = listening.stop()
    listening = Capture()
    assert ask_secret(plain) == answer
    again = listening.stop()
    assert_ring_is_where_it_should_be(plain)
    plain.stop()
    listening = Capture()
    assert ask_secret(cluster) == answer
    behind_tls = listening.stop()

    # Those that are the same each time, bit for bit.
    hidden = pieces(of_ring(clear, plain.ports.ring)) & pieces(of_ring(again, plain.ports.ring))
    assert len(hidden) * PIECE > len(SECRET) * HIDDEN // 2
    readable = {name for name, secret in secrets().items() if where(clear, secret)}
    assert readable == {"text", "frames"}  # so that it would be noticed

    assert of_ring(behind_tls, cluster.ports.ring), "the ring was not heard at all"
    everything = b"\0".join(behind_tls.values())
    assert not {name for name, secret in secrets().items() if secret in everything}
    assert not [piece for piece in hidden if piece in everything]
    assert answer.encode() not in everything


def assert_ring_is_where_it_should_be(plain: Cluster) -> None:
    """On the addresses of the hostfile, and open to nobody once it has joined."""
    ring = set(plain.ports.ring)
    own = [c for pid in plain.pids for c in psutil.Process(pid).net_connections("tcp")]
    inside = [c for c in own if c.laddr.port in ring]
    assert len(inside) == len(ring)
    assert {c.laddr.ip for c in inside} == {HOST}
    assert psutil.CONN_LISTEN not in {c.status for c in inside}


# the ring inside TLS


def tunnels(cluster: TlsCluster) -> dict[int, psutil.Process]:
    """The tunnel of each rank, by the rank's process."""
    found = {}
    for pid in cluster.pids:
        for child in psutil.Process(pid).children():
            if "server.tls.tunnel" in child.cmdline():
                found[pid] = child
    return found


def test_the_ring_itself_is_on_no_network_interface(cluster: TlsCluster) -> None:
    ring = set(cluster.ports.ring)
    of_tunnels = {pid: tunnel.net_connections("tcp") for pid, tunnel in tunnels(cluster).items()}
    assert len(of_tunnels) == 2
    for pid, connections in of_tunnels.items():
        ends = {end.port for c in connections for end in (c.laddr, c.raddr) if end}
        assert ends & ring, "the tunnels carry it"
        rank = psutil.Process(pid).net_connections("tcp")
        assert not {end.port for c in rank for end in (c.laddr, c.raddr) if end} & (ring | ends)


@pytest.mark.soak
def test_a_tunnel_that_dies_ends_all_ranks_with_a_sentence(
    tiny_model: Path, tmp_path: Path
) -> None:
    cluster = TlsCluster(two_ranks(tiny_model), tmp_path / "dies", tensors=True)
    try:
        cluster.start().wait_ready()
        left = tunnels(cluster)
        _, tunnel = left.popitem()
        tunnel.kill()
        assert cluster.wait_ended() != 0
        assert f"(process {tunnel.pid}) has ended" in cluster.log
        wait_until(
            lambda: not any(is_running(one.pid) for one in left.values()), "no tunnel is left"
        )
        cluster.assert_nothing_left()
    finally:
        cluster.kill()
