"""What TLS costs a client of the gateway: an application that does nothing, with and without."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from benchlib.ports import HOST
from benchlib.stats import percentiles
from config.tls import TlsConfig
from server.node.serve import Listener, start_servers
from server.tls.gateway import gateway_tls

WARM_UP = 5
BODY = b"x" * 2000  # of a request, as a short prompt has


def measure_gateway(config: TlsConfig, count: int) -> list[dict[str, Any]]:
    """Rows with microseconds of a request, over a connection that stays and over a new one."""
    return asyncio.run(_measure(config, count))


async def _measure(config: TlsConfig, count: int) -> list[dict[str, Any]]:
    async def nothing(request: Request) -> JSONResponse:
        await request.body()
        return JSONResponse({})

    app = Starlette(routes=[Route("/", nothing, methods=["POST"])])
    tls = gateway_tls(config)
    assert tls is not None, "the gateway has TLS"
    trusting = ssl.create_default_context(cafile=str(config.cluster.ca_path))
    listeners = [Listener("none", app, HOST, 0), Listener("gateway", app, HOST, 0, tls.context)]
    servers = await start_servers(listeners)
    rows = []
    try:
        for name, scheme in (("none", "http"), ("gateway", "https")):
            host, port = servers.addresses[name]
            async with httpx.AsyncClient(
                base_url=f"{scheme}://{host}:{port}", verify=trusting, timeout=30
            ) as client:
                kept = await _times(lambda: client.post("/", content=BODY), count)
                closed = {"connection": "close"}
                new = await _times(
                    lambda: client.post("/", content=BODY, headers=closed),  # noqa: B023
                    count,
                )
            for what, times in (("request", kept), ("request, new connection", new)):
                rows.append({"what": what, "tls": name, **percentiles(times, "us")})
    finally:
        await servers.stop(0)
    return rows


async def _times(work: Callable[[], Awaitable[httpx.Response]], count: int) -> list[float]:
    """Microseconds."""
    times = []
    for _ in range(WARM_UP + count):
        started = time.perf_counter()
        (await work()).raise_for_status()
        times.append(1e6 * (time.perf_counter() - started))
    return times[WARM_UP:]
