from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from pipeline.errors import LinkTimeout
from server.leader import wait_for_others
from server.rpc.errors import CoordinatorLost
from server.rpc.records import HealthPolicy, RankState
from tests.server.rpc.samples import heartbeat, registration
from tests.server.rpc.test_coordinator import cluster

pytestmark = pytest.mark.anyio

DEADLINE = 60.0  # seconds


async def until(condition: Callable[[], bool]) -> None:
    async def poll() -> None:
        while not condition():
            await asyncio.sleep(0.01)

    await asyncio.wait_for(poll(), DEADLINE)


async def test_rank_0_waits_until_all_others_are_ready_and_leaves_no_watcher() -> None:
    async with cluster(HealthPolicy(60, 3)) as (coordinator, client):
        waiting = asyncio.create_task(wait_for_others(client, DEADLINE))
        for rank in range(3):
            await client.register(registration(rank), DEADLINE)
        await client.heartbeat(heartbeat(1))
        await client.heartbeat(heartbeat(2, RankState.LOADING))
        assert not waiting.done()
        await client.heartbeat(heartbeat(2))
        await asyncio.wait_for(waiting, DEADLINE)
        await until(lambda: coordinator.watching == 0)


async def test_ranks_that_are_never_ready_are_named() -> None:
    async with cluster(HealthPolicy(60, 3)) as (_, client):
        await client.register(registration(1), DEADLINE)
        await client.heartbeat(heartbeat(1))
        with pytest.raises(LinkTimeout, match=r"^rank 2 did not say within 0\.2 s of loading"):
            await wait_for_others(client, 0.2)


async def test_a_coordinator_that_stops_meanwhile() -> None:
    async with cluster(HealthPolicy(60, 3)) as (coordinator, client):
        waiting = asyncio.create_task(wait_for_others(client, DEADLINE))
        await client.register(registration(1), DEADLINE)
        await until(lambda: coordinator.watching == 1)
        await coordinator.stop(1.0)
        with pytest.raises(CoordinatorLost, match="stopped before all ranks were ready"):
            await asyncio.wait_for(waiting, DEADLINE)
