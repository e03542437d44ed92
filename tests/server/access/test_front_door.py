"""Requests that come through a launcher: what it may say, and what counts."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.request import TokenEvent
from server.access.addresses import Networks
from server.access.principal import KeyLimits
from server.api.responses.store import Stored
from server.replay.journal import Entry
from server.replay.records import HEADER as JOURNAL_HEADER
from server.replay.records import KEPT_HEADER, MEDIA_TYPE, Kind, Record, RecordReader, Start
from tests.server.access.apps import rank_0_app
from tests.server.access.helpers import add_key
from tests.server.access.rank0 import CHAT, Rank0
from tests.server.api.fakes import ids

pytestmark = pytest.mark.anyio


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


@pytest.mark.parametrize(
    ("address", "supervised", "status"),
    [("10.0.0.1", True, 404), ("10.0.0.1", False, 403), ("203.0.113.7", True, 403)],
)
async def test_only_a_front_door_tells_what_it_has_kept(
    path: Path, address: str, supervised: bool, status: int
) -> None:
    """What is of another owner, or another response, is not what is asked for; and the request counts."""
    rank_0 = Rank0(path, trusted=Networks(["10.0.0.1"]))
    rank_0.app = rank_0_app(replace(rank_0.guard, supervised=supervised), rank_0.engine)
    foreign = Stored.of({"id": "resp_1"}, [], [{"role": "user", "content": "x"}], "somebody else")
    kept = Record(Kind.KEEP, foreign.encoded).encoded
    asked = {"model": "tiny", "input": "hi", "previous_response_id": "resp_1"}
    headers = {**journal_header(), KEPT_HEADER: str(len(kept))}
    key = add_key(path, limits=KeyLimits(requests_per_minute=1))
    async with rank_0.client(key, address) as client:
        body = kept + json.dumps(asked).encode()
        answer = await client.post("/v1/responses", content=body, headers=headers)
        if answer.status_code == 200:  # records
            answer_status = Start.of(next(RecordReader().feed(answer.content)).payload).status
            again = await client.post("/v1/responses", content=body, headers=headers)
            assert again.status_code == 429
        else:
            answer_status = answer.status_code
    assert answer_status == status
    assert rank_0.engine.requests == []
