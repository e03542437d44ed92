"""Requests that share what the engine makes are still each somebody's: counted, charged and written down."""

from __future__ import annotations

import asyncio
from pathlib import Path

import httpx
import pytest

from server.access.principal import KeyLimits
from server.sharing import Sharing
from tests.launcher.frontdoor.doors import DEADLINE_S, soon
from tests.launcher.frontdoor.rank0 import Steered
from tests.server.access.helpers import add_key
from tests.server.access.rank0 import CHAT, Rank0

pytestmark = pytest.mark.anyio

SAME = {**CHAT, "temperature": 0, "max_tokens": 5}


class Shared(Rank0):
    """The engine stops before its first token until all are there who will be."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.pure = Steered(stops_at=lambda request, position: position == 0)
        self.sharing = Sharing(self.pure)
        self.app.state.service.generator = self.sharing

    @property
    def waiting(self) -> int:
        """Requests whose sequences are at work."""
        return len(self.sharing.admitted(frozenset(each.id for each in self.pure.requests)))

    async def ask(self, clients: list[httpx.AsyncClient], served: int) -> list[httpx.Response]:
        """All at once; `served`: how many get as far as the engine."""
        path = "/v1/chat/completions"
        tasks = [asyncio.create_task(client.post(path, json=SAME)) for client in clients]
        await soon(lambda: self.waiting == served)
        self.pure.gate.set()
        return await asyncio.wait_for(asyncio.gather(*tasks), DEADLINE_S)


async def test_each_is_counted_and_written_down(path: Path) -> None:
    rank_0 = Shared(path)
    limits = KeyLimits(requests_per_minute=3)
    async with rank_0.client(add_key(path, limits=limits)) as client:
        answers = await rank_0.ask([client] * 5, served=3)
    assert sorted(answer.status_code for answer in answers) == [200] * 3 + [429] * 2
    assert len(rank_0.pure.requests) == 1
    good = [answer.json() for answer in answers if answer.status_code == 200]
    assert len({answer["id"] for answer in good}) == 3
    assert len({answer["choices"][0]["message"]["content"] for answer in good}) == 1
    usage = good[0]["usage"]
    served = [entry for entry in rank_0.audit() if entry["status"] == 200]
    assert [(entry["prompt_tokens"], entry["completion_tokens"]) for entry in served] == [
        (usage["prompt_tokens"], usage["completion_tokens"])
    ] * 3
    assert len({entry["request_id"] for entry in served}) == 3
    assert len([entry for entry in rank_0.audit() if entry["status"] == 429]) == 2


async def test_nobody_shares_with_another_key(path: Path) -> None:
    rank_0 = Shared(path)
    async with (
        rank_0.client(add_key(path)) as ann,
        rank_0.client(add_key(path)) as bob,
    ):
        await rank_0.ask([ann, ann, bob, bob], served=4)
    assert len(rank_0.pure.requests) == 2
