"""More requests than rank 0 takes at once: it is rank 0 that says so, and no other reason is made up."""

from __future__ import annotations

import asyncio
import random

import pytest

from launcher.frontdoor.door import SPARE_CONNECTIONS
from tests.launcher.frontdoor.doors import DEADLINE_S, client_of, opened, soon
from tests.launcher.frontdoor.rank0 import Rank0, Steered
from tests.launcher.frontdoor.test_restart import CHAT, SEEDED, at

pytestmark = pytest.mark.anyio


async def test_no_request_waits_here_for_a_connection() -> None:
    """A setting may be raised at rank 0 while all run, of which the front door is not told."""
    many = SPARE_CONNECTIONS + 6
    rank0 = Rank0(Steered(random.Random(1), stops_at=at(3)))
    rank0.service.max_concurrent_requests = many
    async with opened("api_gateway.max_concurrent_requests=2") as door, client_of(door) as client:
        door.leader_changed(await rank0.start())
        tasks = [asyncio.create_task(client.post(CHAT, json=SEEDED)) for _ in range(many)]
        await soon(lambda: rank0.engine.running == many)
        assert (await client.get("/health")).status_code == 404  # of the API alone: it has answered
        full = await client.post(CHAT, json=SEEDED)
        assert (full.status_code, full.json()["error"]["code"]) == (503, "overloaded")
        assert f"limit of {many} concurrent" in full.json()["error"]["message"]
        rank0.engine.gate.set()
        answers = await asyncio.wait_for(asyncio.gather(*tasks), DEADLINE_S)
        assert {answer.status_code for answer in answers} == {200}
        await rank0.stop()
