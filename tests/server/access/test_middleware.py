"""Requests through the middleware: credentials in every place, limits, addresses, and the audit log."""

from __future__ import annotations

import asyncio
import json
import stat
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import hypothesis
import pytest
from hypothesis import strategies as st

from config.access import AuditConfig, LimitsConfig, RoleLimits
from pipeline.errors import EngineFault
from pipeline.request import TokenEvent
from server.access.addresses import Networks
from server.access.audit import AuditLog
from server.access.limits import Limiter
from server.access.middleware import AccessMiddleware, Guard
from server.access.policy import AccessPolicy
from server.access.principal import KeyLimits
from server.access.roles import RouteTable
from server.access.store import KeyStore
from server.replay.journal import Entry
from server.replay.records import HEADER as JOURNAL_HEADER
from server.replay.records import MEDIA_TYPE, RecordReader, Start
from tests.server.access.apps import rank_0_app
from tests.server.access.helpers import add_key
from tests.server.api.fakes import FakeEngine, Script, ids

pytestmark = pytest.mark.anyio

CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}]}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "keys.json"


class Rank0:
    """The application with a guard, and a client at an address."""

    def __init__(self, path: Path, **policy: Any) -> None:
        self.engine = FakeEngine(Script(ids("hello world")))
        self.audit_file = path.parent / "audit.jsonl"
        self.guard = Guard(
            AccessPolicy(KeyStore(path), **policy),
            Limiter(LimitsConfig(user=RoleLimits(requests_per_minute=1000)), places=4),
            AuditLog(AuditConfig(file=str(self.audit_file))),
        )
        self.app = rank_0_app(self.guard, self.engine)

    def client(self, key: str = "", address: str = "203.0.113.7") -> httpx.AsyncClient:
        transport = httpx.ASGITransport(
            self.app, raise_app_exceptions=False, client=(address, 4711)
        )
        headers = {"authorization": f"Bearer {key}"} if key else {}
        return httpx.AsyncClient(transport=transport, base_url="http://localhost", headers=headers)

    def audit(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.audit_file.read_text().splitlines()]


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
        AccessMiddleware(app, rank_0.guard)(scope, lambda: None, sent.put)  # type: ignore[arg-type]
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


async def test_the_audit_log_tells_who_did_what_and_never_what_was_said(path: Path) -> None:
    rank_0 = Rank0(path)
    key = add_key(path, name="Ann")
    marked = {"model": "tiny", "messages": [{"role": "user", "content": "MARKER"}]}
    async with rank_0.client(key) as client:
        answer = await client.post(
            "/v1/chat/completions?MARKER=1", json=marked, headers={"x-request-id": "r-1"}
        )
        await client.get("/v1/models/MARKER")
        await client.get("/MARKER")
        await client.post("/v1/chat/completions", json={"MARKER": "MARKER"})
    async with rank_0.client("mlxc_MARKER") as client:
        await client.request("MARKER", "/v1/models")
    entries = rank_0.audit()
    assert [(e["route"], e["status"], e["result"]) for e in entries] == [
        ("/v1/chat/completions", 200, "ok"),
        ("/v1/models/{model_id:path}", 404, "refused"),
        ("-", 404, "refused"),
        ("/v1/chat/completions", 400, "refused"),
        ("-", 401, "refused"),
    ]
    usage = answer.json()["usage"]
    first = entries[0]
    assert (first["key"], first["name"], first["role"]) == (key[5:17], "Ann", "user")
    assert (first["request_id"], first["address"]) == ("r-1", "203.0.113.7")
    assert first["prompt_tokens"] == usage["prompt_tokens"]
    assert first["completion_tokens"] == usage["completion_tokens"]
    assert (entries[4]["name"], entries[4]["code"]) == ("nobody", "invalid_api_key")
    text = rank_0.audit_file.read_text()
    assert "hello" not in text
    assert "MARKER" not in text
    assert key not in text
    assert stat.S_IMODE(rank_0.audit_file.stat().st_mode) == 0o600


async def test_a_client_that_leaves_is_in_the_audit_log_with_what_it_used(path: Path) -> None:
    rank_0 = Rank0(path)
    rank_0.engine.script = Script(ids("hello world"), hang=True)
    async with rank_0.client(add_key(path)) as client:
        running = asyncio.create_task(client.post("/v1/chat/completions", json=CHAT))
        while not rank_0.engine.running:
            await asyncio.sleep(0.001)
        await asyncio.sleep(0.05)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
    (entry,) = rank_0.audit()
    assert (entry["status"], entry["result"]) == (0, "cancelled")
    assert entry["prompt_tokens"] > 0
    assert entry["completion_tokens"] > 0
    # and its place is free
    assert rank_0.guard.limiter is not None
    assert all(usage.sequences == 0 for usage in rank_0.guard.limiter._usage.values())


async def test_a_front_door_writes_down_only_what_it_refuses(path: Path) -> None:
    rank_0 = Rank0(path)
    rank_0.app = rank_0_app(
        Guard(rank_0.guard.policy, audit=rank_0.guard.audit, only_refusals=True), rank_0.engine
    )
    async with rank_0.client(add_key(path)) as client:
        await client.post("/v1/chat/completions", json=CHAT)
        await client.post("/v1/chat/completions", json={})
        await client.post("/admin/models/switch", json={})
    assert [entry["code"] for entry in rank_0.audit()] == ["insufficient_role"]


async def test_a_stream_that_fails_has_failed_whatever_its_status_was(path: Path) -> None:
    rank_0 = Rank0(path)
    rank_0.engine.script = Script(ids("hello"), error=EngineFault("rank 1 is gone"))
    async with rank_0.client(add_key(path)) as client:
        await client.post("/v1/chat/completions", json={**CHAT, "stream": True})
    (entry,) = rank_0.audit()
    assert (entry["status"], entry["result"]) == (200, "failed")


async def test_the_engine_is_told_whose_a_sequence_is(path: Path) -> None:
    rank_0, keys = Rank0(path), [add_key(path), add_key(path)]
    for key in keys:
        async with rank_0.client(key) as client:
            await client.post("/v1/completions", json={"model": "tiny", "prompt": ["a", "b"]})
    tenants = [request.tenant for request in rank_0.engine.requests]
    assert tenants == [keys[0][5:17]] * 2 + [keys[1][5:17]] * 2


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


async def test_the_audit_log_is_put_aside_when_it_is_large(tmp_path: Path) -> None:
    add_key(tmp_path / "keys.json")
    rank_0 = Rank0(tmp_path / "keys.json")
    assert rank_0.guard.audit is not None
    rank_0.guard.audit._handler.maxBytes = 1000
    rank_0.guard.audit._handler.backupCount = 2
    async with rank_0.client() as client:
        for _ in range(30):
            await client.get("/health")
    names = sorted(file.name for file in tmp_path.glob("audit.jsonl*"))
    assert names == ["audit.jsonl", "audit.jsonl.1", "audit.jsonl.2"]
    assert all(stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o600 for name in names)


def journal_header(events: bytes = b"") -> dict[str, str]:
    return {JOURNAL_HEADER: f"1700000000.{'0' * 32}.{len(events)}"}


async def test_a_response_for_a_front_door_has_status_and_headers_of_its_own(path: Path) -> None:
    rank_0 = Rank0(path)
    key = add_key(path, limits=KeyLimits(requests_per_minute=2))
    async with rank_0.client(key) as client:
        wrong = {**CHAT, "temperature": "hot"}
        answer = await client.post("/v1/chat/completions", json=wrong, headers=journal_header())
    assert answer.headers["content-type"] == MEDIA_TYPE
    records = list(RecordReader().feed(answer.content))
    start = Start.of(records[0].payload)
    assert start.status == 400
    assert (b"x-ratelimit-remaining-requests", b"1") in start.headers
    (entry,) = rank_0.audit()
    assert (entry["status"], entry["result"]) == (400, "refused")


@pytest.mark.parametrize("address", ["10.0.0.1", "203.0.113.7"])
async def test_only_what_a_trusted_hop_repeats_is_not_counted_again(
    path: Path, address: str
) -> None:
    rank_0 = Rank0(path, trusted=Networks(["10.0.0.1"]))
    key = add_key(path, limits=KeyLimits(requests_per_minute=1))
    event = Entry(0, TokenEvent(ids("h")[0])).record.encoded
    async with rank_0.client(key, address) as client:
        await client.post("/v1/chat/completions", json=CHAT)
        body = event + json.dumps(CHAT).encode()
        headers = journal_header(event)
        again = await client.post("/v1/chat/completions", content=body, headers=headers)
    assert again.status_code == (200 if address == "10.0.0.1" else 403)


@pytest.mark.parametrize("supervised", [True, False])
async def test_only_a_front_door_tells_what_was_answered(path: Path, supervised: bool) -> None:
    """Behind a proxy of this machine everybody comes from a loopback address."""
    rank_0 = Rank0(path)
    rank_0.app = rank_0_app(replace(rank_0.guard, supervised=supervised), rank_0.engine)
    event = Entry(0, TokenEvent(ids("h")[0])).record.encoded
    body, headers = event + json.dumps(CHAT).encode(), journal_header(event)
    async with rank_0.client(add_key(path), "127.0.0.1") as client:
        answer = await client.post("/v1/chat/completions", content=body, headers=headers)
    assert answer.status_code == (200 if supervised else 403)
