"""Nothing that a client sends makes this server connect to anywhere."""

from __future__ import annotations

import socket
from typing import Any

import httpx
import pytest

from tests.server.access.apps import rank_0_app

pytestmark = pytest.mark.anyio

ADDRESS = "http://203.0.113.9/picture.png"
IMAGE = {"type": "image_url", "image_url": {"url": ADDRESS}}
ANTHROPIC = {"type": "image", "source": {"type": "url", "url": ADDRESS}}
TOOL = {"type": "mcp", "server_url": ADDRESS, "server_label": "x"}

REQUESTS: list[tuple[str, dict[str, Any]]] = [
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": [IMAGE]}]}),
    (
        "/v1/chat/completions",
        {
            "messages": [
                {"role": "user", "content": [{"type": "file", "file": {"file_id": ADDRESS}}]}
            ]
        },
    ),
    (
        "/v1/chat/completions",
        {"messages": [{"role": "user", "content": "x"}], "chat_template": ADDRESS},
    ),
    (
        "/v1/responses",
        {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": ADDRESS}]}]},
    ),
    ("/v1/responses", {"input": "x", "tools": [TOOL]}),
    (
        "/v1/messages",
        {"max_tokens": 5, "messages": [{"role": "user", "content": [ANTHROPIC]}]},
    ),
]


@pytest.mark.parametrize(("path", "body"), REQUESTS)
async def test_what_refers_to_an_address_is_refused_and_nobody_is_asked(
    path: str, body: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[object] = []
    for name in ("connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, name, lambda *a: asked.append(a))
    monkeypatch.setattr(socket, "getaddrinfo", lambda *a, **k: asked.append(a))
    transport = httpx.ASGITransport(rank_0_app(), raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        response = await client.post(path, json={"model": "tiny", **body})
    assert response.status_code == 400, response.text
    assert not asked
