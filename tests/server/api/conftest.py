from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Any

import httpx
import pytest
from starlette.routing import BaseRoute

from server.api.app import create_app
from server.api.service import Service
from tests.server.api.fakes import FakeEngine, Script, ids, make_service


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine(Script(ids("hello world")))


@pytest.fixture
def service(engine: FakeEngine) -> Service:
    return make_service(engine)


class Client:
    """One ASGI call at a time, from synchronous tests."""

    def __init__(self, service: Service, extra_routes: Sequence[BaseRoute] = ()) -> None:
        self._app = create_app(service, extra_routes)

    def request(self, method: str, path: str, **kwargs: Any) -> httpx.Response:
        async def call() -> httpx.Response:
            # An unforeseen error is answered and then raised for the server; here only the answer counts.
            transport = httpx.ASGITransport(self._app, raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
                return await client.request(method, path, **kwargs)

        return asyncio.run(asyncio.wait_for(call(), 30))

    def post(self, path: str, body: Any, **kwargs: Any) -> httpx.Response:
        return self.request("POST", path, json=body, **kwargs)

    def chat(self, content: Any = "hi", **fields: Any) -> httpx.Response:
        messages = [{"role": "user", "content": content}]
        return self.post("/v1/chat/completions", {"model": "tiny", "messages": messages, **fields})

    def complete(self, prompt: Any = "hi", **fields: Any) -> httpx.Response:
        return self.post("/v1/completions", {"model": "tiny", "prompt": prompt, **fields})


@pytest.fixture
def client(service: Service) -> Client:
    return Client(service)


def events(response: httpx.Response) -> list[Any]:
    """The data of all events; the last one must be [DONE]."""
    assert response.headers["content-type"].startswith("text/event-stream")
    lines = [line for line in response.text.split("\n") if line]
    data = [line.removeprefix("data: ") for line in lines if not line.startswith(":")]
    assert data[-1] == "[DONE]"
    return [json.loads(item) for item in data[:-1]]
