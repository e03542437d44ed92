"""Ports behind TLS: the gateway's, for anybody; a node's, for members of the cluster."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from config.tls import TlsConfig
from server.node.forward import ForwardLimits, UpstreamTls, forward_app
from server.node.serve import HttpServers, Listener, start_servers
from server.tls.__main__ import main
from server.tls.gateway import GatewayTls, gateway_tls
from server.tls.identity import node
from tests.certificates import ENOUGH, cluster_config, make_folder, tls_of

pytestmark = pytest.mark.anyio

HOST = "127.0.0.1"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_folder(tmp_path / "tls")


def api() -> Starlette:
    async def answer(request: Request) -> JSONResponse:
        body = await request.body()
        return JSONResponse({"scheme": request.url.scheme, "bytes": len(body)})

    return Starlette(routes=[Route("/", answer, methods=["GET", "POST"])])


def gateway(folder: Path) -> GatewayTls:
    tls = gateway_tls(TlsConfig.model_validate(cluster_config(folder, gateway={"mode": "own"})))
    assert tls is not None
    return tls


@asynccontextmanager
async def serving(*listeners: Listener) -> AsyncIterator[HttpServers]:
    servers = await start_servers(listeners)
    try:
        yield servers
    finally:
        await servers.stop(0)


def url(servers: HttpServers, name: str, scheme: str = "https") -> str:
    host, port = servers.addresses[name]
    return f"{scheme}://{host}:{port}/"


async def get(address: str, context: ssl.SSLContext | None, name: str = "") -> httpx.Response:
    async with httpx.AsyncClient(verify=context or False, timeout=ENOUGH) as client:
        extensions = {"sni_hostname": name} if name else {}
        return await client.post(address, content=b"x" * 100_000, extensions=extensions)


async def test_one_application_with_and_without(folder: Path) -> None:
    app, own = api(), tls_of(folder, "n0")
    trusting = ssl.create_default_context(cafile=str(folder / "ca.pem"))
    async with serving(
        Listener("plain", app, HOST, 0),
        Listener("gateway", app, HOST, 0, gateway(folder).context),
        Listener("inference", app, HOST, 0, own.server),
    ) as servers:
        plain = await get(url(servers, "plain", "http"), None)
        assert plain.json() == {"scheme": "http", "bytes": 100_000}
        answer = await get(url(servers, "gateway"), trusting)
        assert answer.json() == {"scheme": "https", "bytes": 100_000}
        member = await get(
            url(servers, "inference"), tls_of(folder, "n1").client, node("n0").dns_name
        )
        assert member.json() == {"scheme": "https", "bytes": 100_000}
        with pytest.raises(httpx.TransportError):
            await get(url(servers, "inference"), trusting, node("n0").dns_name)
        with pytest.raises(httpx.TransportError):
            await get(url(servers, "inference", "http"), None)


async def test_a_client_with_a_certificate_of_its_own_reads_the_ports_of_nodes(
    folder: Path,
) -> None:
    reader = ssl.create_default_context(cafile=str(folder / "ca.pem"))
    reader.load_cert_chain(folder / "reader.pem", folder / "reader.key")
    async with serving(Listener("health", api(), HOST, 0, tls_of(folder, "n0").server)) as servers:
        assert (await get(url(servers, "health"), reader, node("n0").dns_name)).status_code == 200


async def test_a_certificate_is_replaced_while_it_serves(folder: Path) -> None:
    tls = gateway(folder)

    async def serial(port: int) -> str:
        trusting = ssl.create_default_context(cafile=str(folder / "ca.pem"))
        _, writer = await asyncio.open_connection(HOST, port, ssl=trusting)
        certificate = writer.get_extra_info("peercert")
        writer.close()
        return str(certificate["serialNumber"])

    async with serving(Listener("gateway", api(), HOST, 0, tls.context)) as servers:
        watching = asyncio.create_task(tls.watch(seconds=0.02))
        port = servers.addresses["gateway"][1]
        first = await serial(port)
        assert await serial(port) == first
        assert main(["--folder", str(folder), "renew", "gateway"]) == 0

        async def until_replaced() -> None:
            while await serial(port) == first:
                await asyncio.sleep(0.02)

        await asyncio.wait_for(until_replaced(), ENOUGH)
        watching.cancel()


async def test_a_forwarding_port_calls_rank_0_by_its_name(folder: Path) -> None:
    limits = ForwardLimits(max_body_bytes=1 << 20)
    own, other = tls_of(folder, "n0"), tls_of(folder, "n1")
    async with serving(Listener("inference", api(), HOST, 0, own.server)) as leader:
        host, port = leader.addresses["inference"]
        for name, status in (("n0", 200), ("n1", 503)):
            upstream = UpstreamTls(other.client, node(name).dns_name)
            forwarding = forward_app(host, port, limits, upstream)
            async with serving(Listener("inference", forwarding, HOST, 0, other.server)) as servers:
                answer = await get(url(servers, "inference"), own.client, node("n1").dns_name)
                assert answer.status_code == status, answer.text


async def test_who_says_nothing_holds_nobody_up_and_stopping_waits_for_nobody(
    folder: Path,
) -> None:
    trusting = ssl.create_default_context(cafile=str(folder / "ca.pem"))
    silent: list[socket.socket] = []
    async with serving(Listener("gateway", api(), HOST, 0, gateway(folder).context)) as servers:
        silent = [socket.create_connection(servers.addresses["gateway"]) for _ in range(50)]
        assert (await get(url(servers, "gateway"), trusting)).status_code == 200
    for sock in silent:
        sock.close()
