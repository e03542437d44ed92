"""Errors are counted where they become responses, whoever answers."""

from __future__ import annotations

import asyncio
from pathlib import Path

import httpx
import pytest

from pipeline.errors import EngineFault
from server.access.middleware import Guard
from server.access.policy import AccessPolicy
from server.access.store import KeyStore
from server.observe.registry import REGISTRY
from tests.server.access.apps import rank_0_app
from tests.server.access.helpers import add_key
from tests.server.api.conftest import Client
from tests.server.api.fakes import FakeEngine, Script, ids, make_service


def count(kind: str, code: str) -> float:
    labels = {"type": kind, "code": code}
    return REGISTRY.get_sample_value("mlxc_request_errors_total", labels) or 0.0


@pytest.mark.parametrize("stream", [False, True])
def test_faults_of_the_engine(stream: bool) -> None:
    tokens = ids("hello world") if stream else []
    engine = FakeEngine(Script(tokens, error=EngineFault("broken")))
    before = count("server_error", "internal_error")
    answer = Client(make_service(engine)).chat(stream=stream)
    assert (answer.status_code == 200) == stream
    assert count("server_error", "internal_error") == before + 1


def test_requests_that_can_t_be_served() -> None:
    before = count("invalid_request_error", "model_not_found")
    client = Client(make_service(FakeEngine()))
    assert client.post("/v1/completions", {"model": "no", "prompt": "x"}).status_code == 404
    assert count("invalid_request_error", "model_not_found") == before + 1


def test_who_is_not_let_in(tmp_path: Path) -> None:
    add_key(tmp_path / "keys.json")
    app = rank_0_app(Guard(AccessPolicy(KeyStore(tmp_path / "keys.json"))))

    async def ask() -> httpx.Response:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return await client.get("/v1/models")

    before = count("invalid_request_error", "invalid_api_key")
    assert asyncio.run(ask()).status_code == 401
    assert count("invalid_request_error", "invalid_api_key") == before + 1
