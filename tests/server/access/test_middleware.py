"""Requests through the middleware: credentials in every place, limits and addresses."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from hypothesis import strategies as st

from server.access.addresses import Networks
from server.access.middleware import AccessMiddleware, Guard
from server.access.policy import AccessPolicy
from server.access.principal import KeyLimits
from server.access.roles import RouteTable
from server.access.store import KeyStore
from tests.server.access.helpers import add_key
from tests.server.access.rank0 import CHAT, Rank0
from tests.server.api.fakes import Script, ids

pytestmark = pytest.mark.anyio


async def test_either_header_is_a_key_and_two_different_ones_are_none(path: Path) -> None:
    key, other = add_key(path), add_key(path)
    async with Rank0(path).client() as client:
        for headers, status in [
            ({"authorization": f"Bearer {key}"}, 200),
            ({"authorization": f"bearer  {key}"}, 200),
            ({"x-api-key": key}, 200),
            ({"x-api-key": key, "authorization": f"Bearer {key}"}, 200),
            ({"x-api-key": other, "authorization": f"Bearer {key}"}, 401),
            ({"authorization": key}, 401),
            ({"authorization": f"Basic {key}"}, 401),
            ({"authorization": "Bearer "}, 401),
            ({"authorization": f"Bearer {key} {key}"}, 401),
            ({"authorization": "Bearer " + "x" * 10_000}, 401),
            ({"x-api-key": ""}, 401),
        ]:
            response = await client.get("/v1/models", headers=headers)
            assert response.status_code == status, headers
        twice = [("authorization", f"Bearer {key}"), ("authorization", f"Bearer {other}")]
        assert (await client.get("/v1/models", headers=twice)).status_code == 401
        assert (await client.get(f"/v1/models?key={key}")).status_code == 401  # never in an address


async def test_open_until_there_is_a_key(path: Path) -> None:
    rank_0 = Rank0(path, optional=True)
    async with rank_0.client() as client:
        assert (await client.post("/v1/chat/completions", json=CHAT)).status_code == 200
        key = add_key(path)
        assert (await client.post("/v1/chat/completions", json=CHAT)).status_code == 401
        path.unlink()
        assert (await client.post("/v1/chat/completions", json=CHAT)).status_code == 401
    assert key


async def test_a_stream_passes_through_piece_by_piece(path: Path) -> None:
    """The first chunk is there while the model still works on the rest."""
    rank_0 = Rank0(path)
    sent, finished = asyncio.Queue[Any](), asyncio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"first", "more_body": True})
        await finished.wait()
        await send({"type": "http.response.body", "body": b"last"})

    key = add_key(path)
    scope = {
        "type": "http",
        "method": "GET",
        "path": "/v1/models",
        "headers": [(b"authorization", f"Bearer {key}".encode())],
        "client": ("127.0.0.1", 1),
        "state": {"request_id": "r"},
    }
    running = asyncio.create_task(
        AccessMiddleware(app, rank_0.guard)(scope, lambda: None, sent.put)  # type: ignore[arg-type, return-value]
    )
    assert (await asyncio.wait_for(sent.get(), 30))["status"] == 200
    assert (await asyncio.wait_for(sent.get(), 30))["body"] == b"first"
    assert not running.done()
    finished.set()
    await asyncio.wait_for(running, 30)
    assert scope["state"]["principal"].name == "someone"


async def test_a_refusal_has_the_shape_of_the_api_that_was_asked(path: Path) -> None:
    add_key(path)
    async with Rank0(path).client() as client:
        openai = (await client.post("/v1/chat/completions", json=CHAT)).json()
        anthropic = (await client.post("/v1/messages", json=CHAT)).json()
    assert openai["error"]["type"] == "invalid_request_error"
    assert anthropic["type"] == "error"
    assert anthropic["error"]["type"] == "authentication_error"


async def test_a_websocket_is_refused() -> None:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    guard = Guard(AccessPolicy())
    await AccessMiddleware(None, guard)({"type": "websocket"}, None, send)  # type: ignore[arg-type]
    assert sent == [{"type": "websocket.close", "code": 1008}]


async def test_limits_answer_with_429_and_say_when(path: Path) -> None:
    rank_0 = Rank0(path)
    key = add_key(path, limits=KeyLimits(requests_per_minute=2, tokens_per_minute=1000))
    async with rank_0.client(key) as client:
        first = await client.post("/v1/chat/completions", json={**CHAT, "max_tokens": 5})
        assert first.status_code == 200
        assert first.headers["x-ratelimit-limit-requests"] == "2"
        assert first.headers["x-ratelimit-remaining-requests"] == "1"
        used = first.json()["usage"]["total_tokens"]
        # Models cost nothing.
        assert (await client.get("/v1/models")).status_code == 200
        stream = await client.post(
            "/v1/chat/completions", json={**CHAT, "max_tokens": 5, "stream": True}
        )
        assert stream.headers["x-ratelimit-remaining-requests"] == "0"
        remaining = int(stream.headers["x-ratelimit-remaining-tokens"])
        assert remaining == pytest.approx(1000 - used - (used - 3 + 5), abs=12)
        third = await client.post("/v1/chat/completions", json=CHAT)
    assert third.status_code == 429
    assert third.json()["error"]["type"] == "rate_limit_error"
    assert third.json()["error"]["code"] == "rate_limit_exceeded"
    assert 1 <= int(third.headers["retry-after"]) <= 30
    assert third.headers["x-ratelimit-remaining-requests"] == "0"


async def test_tokens_of_a_minute(path: Path) -> None:
    rank_0 = Rank0(path)
    key = add_key(path, limits=KeyLimits(tokens_per_minute=150))
    async with rank_0.client(key) as client:
        ask = {**CHAT, "max_tokens": 120}
        assert (await client.post("/v1/chat/completions", json=ask)).status_code == 200
        # Little of the 120 was used, so there is room again.
        assert (await client.post("/v1/chat/completions", json=ask)).status_code == 200
        rank_0.engine.script = Script(ids("hello"), hang=True)
        running = asyncio.create_task(client.post("/v1/chat/completions", json=ask))
        while not rank_0.engine.running:
            await asyncio.sleep(0.001)
        refused = await client.post("/v1/chat/completions", json=ask)
        assert refused.status_code == 429
        assert refused.headers["retry-after"]
        running.cancel()


async def test_one_key_holds_no_more_than_its_share_of_places(path: Path) -> None:
    rank_0 = Rank0(path)  # 4 places for one key
    greedy, other = add_key(path), add_key(path)
    many = {"model": "tiny", "prompt": ["hi"] * 5}
    async with rank_0.client(greedy) as client:
        refused = await client.post("/v1/completions", json=many)
        assert refused.status_code == 429
        assert "4 sequences" in refused.json()["error"]["message"]
        rank_0.engine.script = Script(hang=True)
        full = {"model": "tiny", "prompt": ["hi"] * 4}
        running = asyncio.create_task(client.post("/v1/completions", json=full))
        while rank_0.engine.running < 4:
            await asyncio.sleep(0.001)
        assert (await client.post("/v1/chat/completions", json=CHAT)).status_code == 429
        rank_0.engine.script = Script(ids("hello"))
        async with rank_0.client(other) as somebody_else:
            assert (await somebody_else.post("/v1/chat/completions", json=CHAT)).status_code == 200
        running.cancel()


async def test_most_output_tokens(path: Path) -> None:
    rank_0 = Rank0(path)
    key = add_key(path, limits=KeyLimits(max_tokens=3))
    async with rank_0.client(key) as client:
        refused = await client.post("/v1/chat/completions", json={**CHAT, "max_tokens": 4})
        assert refused.status_code == 400
        assert refused.json()["error"]["param"] == "max_tokens"
        await client.post("/v1/chat/completions", json={**CHAT, "max_tokens": 3})
        await client.post("/v1/chat/completions", json=CHAT)  # as many as it may
    assert [request.max_tokens for request in rank_0.engine.requests] == [3, 3]


@pytest.mark.parametrize(
    ("address", "forwarded", "status"),
    [
        ("203.0.113.7", None, 200),
        ("198.51.100.1", None, 403),
        ("198.51.100.1", "203.0.113.7", 403),  # its own word
        ("10.0.0.1", "203.0.113.7", 200),
        ("10.0.0.1", "203.0.113.7, 198.51.100.1", 403),
        ("10.0.0.1", None, 403),  # the proxy itself is no client
        ("2001:db8::7", None, 200),
        ("10.0.0.1", "2001:db9::7", 403),
    ],
)
async def test_addresses(path: Path, address: str, forwarded: str | None, status: int) -> None:
    networks = Networks(["203.0.113.0/24", "2001:db8::/32"])
    rank_0 = Rank0(path, allow=networks, trusted=Networks(["10.0.0.1"]))
    headers = {} if forwarded is None else {"x-forwarded-for": forwarded}
    async with rank_0.client(add_key(path), address) as client:
        response = await client.get("/v1/models", headers=headers)
    assert response.status_code == status
    if status == 403:
        assert response.json()["error"]["code"] == "ip_not_allowed"


async def test_neighbours_may_ask_how_a_rank_is_wherever_clients_may_be(path: Path) -> None:
    rank_0 = Rank0(path, allow=Networks(["203.0.113.0/24"]), trusted=Networks(["10.0.0.1"]))
    async with rank_0.client(address="10.0.0.1") as neighbour:
        assert (await neighbour.get("/health")).status_code != 403
        forwarded = {"x-forwarded-for": "198.51.100.1"}
        assert (await neighbour.get("/health", headers=forwarded)).status_code == 403
    async with rank_0.client(address="198.51.100.1") as stranger:
        assert (await stranger.get("/health")).status_code == 403


HEADER_TEXT = st.text(st.characters(min_codepoint=32, max_codepoint=255), max_size=60)


@hypothesis.settings(max_examples=300, deadline=None)
@hypothesis.given(
    headers=st.lists(
        st.tuples(
            st.sampled_from(["authorization", "x-api-key", "x-forwarded-for", "origin", "host"]),
            st.one_of(
                HEADER_TEXT, HEADER_TEXT.map(lambda t: f"Bearer {t}"), st.just("Bearer mlxc_")
            ),
        ),
        max_size=5,
    ),
    path=st.text(max_size=30).map(lambda text: "/" + text),
    method=st.sampled_from(["GET", "POST", "PUT", "X"]),
)
def test_no_header_and_no_path_gets_past_or_breaks_anything(
    headers: list[tuple[str, str]], path: str, method: str
) -> None:
    rule = RouteTable().find(method, path)
    hypothesis.assume(rule is None or rule.role is not None)
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def app(*_: object) -> None:
        raise AssertionError("let in")

    with tempfile.TemporaryDirectory() as folder:
        guard = Guard(
            AccessPolicy(KeyStore(Path(folder, "keys.json")), trusted=Networks(["127.0.0.1"]))
        )
        scope = {
            "type": "http",
            "method": method,
            "path": path,
            "headers": [(name.encode(), value.encode("latin-1")) for name, value in headers],
            "client": ("127.0.0.1", 1),
        }
        asyncio.run(AccessMiddleware(app, guard)(scope, None, send))  # type: ignore[arg-type]
    assert sent[0]["status"] in (401, 403)
