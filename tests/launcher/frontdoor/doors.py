"""Front doors and their clients in one process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx

from config import load
from launcher.frontdoor import FrontDoor

DEADLINE_S = 60.0


@asynccontextmanager
async def opened(*settings: str, **more: Any) -> AsyncIterator[FrontDoor]:
    """A front door on a free port."""
    fast = ["network.retry_initial=0.01", "network.retry_max=0.05", "access.enabled=false"]
    config = load(None, {}, [*fast, *settings]).config
    gateway = config.api_gateway.model_copy(update={"port": 0})
    door = FrontDoor(config.model_copy(update={"api_gateway": gateway}), **more)
    await door.start()
    try:
        yield door
    finally:
        await door.stop(0)


@asynccontextmanager
async def client_of(door: FrontDoor) -> AsyncIterator[httpx.AsyncClient]:
    host, port = door.address
    url = f"http://{host}:{port}"
    async with httpx.AsyncClient(base_url=url, timeout=DEADLINE_S, trust_env=False) as client:
        yield client


async def soon(condition: Any) -> None:
    """Return when `condition()` is true."""

    async def poll() -> None:
        while not condition():
            await asyncio.sleep(0.01)

    await asyncio.wait_for(poll(), DEADLINE_S)
