"""What the audit log has of requests through the middleware."""

from __future__ import annotations

import asyncio
import stat
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.errors import EngineFault
from server.access.principal import KeyLimits
from tests.server.access.apps import rank_0_app
from tests.server.access.helpers import add_key
from tests.server.access.rank0 import CHAT, Rank0
from tests.server.api.fakes import Script, ids

pytestmark = pytest.mark.anyio


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


async def test_a_front_door_counts_and_writes_down_what_it_answers_itself(path: Path) -> None:
    rank_0 = Rank0(path)
    answered = frozenset(["/v1/responses/{response_id}"])
    guard = replace(rank_0.guard, only_refusals=True, answered=answered)
    rank_0.app = rank_0_app(guard, rank_0.engine)
    async with rank_0.client(add_key(path, limits=KeyLimits(requests_per_minute=1))) as client:
        await client.post("/v1/chat/completions", json=CHAT)
        await client.post("/v1/chat/completions", json={})
        await client.post("/admin/models/switch", json={})
        await client.get("/v1/responses/resp_1")
        await client.delete("/v1/responses/resp_1")
    written = [(entry["route"], entry["status"], entry["code"]) for entry in rank_0.audit()]
    assert written == [
        ("/admin/models/switch", 403, "insufficient_role"),
        ("/v1/responses/{response_id}", 404, None),
        ("/v1/responses/{response_id}", 429, "rate_limit_exceeded"),
    ]


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
