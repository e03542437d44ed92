"""What operators ask of the launcher through the coordinator."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest

from server.rpc import messages
from server.rpc.client import CoordinatorClient
from server.rpc.coordinator import Coordinator
from server.rpc.errors import CoordinatorError, InvalidMessage, Refused
from server.rpc.records import ClusterSnapshot, HealthPolicy
from server.rpc.registry import ClusterRegistry
from server.rpc.wishes import WishBook, Wishes
from tests.server.rpc.test_coordinator import TwoKeys

pytestmark = pytest.mark.anyio

NODES = ("mini1", "mini2", "master")
DEADLINE = 60.0  # seconds; only a wish that nobody is told of takes so long


@asynccontextmanager
async def supervised(nodes: Sequence[str]) -> AsyncIterator[CoordinatorClient]:
    registry = ClusterRegistry(7, 3, HealthPolicy(60, 3))
    coordinator = Coordinator(registry, TwoKeys(), supervised_nodes=nodes)
    port = await coordinator.start("127.0.0.1", 0)
    client = CoordinatorClient("127.0.0.1", port)
    try:
        yield client
    finally:
        await client.close()
        await coordinator.stop(1.0)


async def following(snapshots: AsyncGenerator[ClusterSnapshot, None]) -> ClusterSnapshot:
    return await asyncio.wait_for(anext(snapshots), DEADLINE)


async def test_who_watches_sees_each_wish_also_one_that_is_repeated() -> None:
    async with supervised(NODES) as client:
        snapshots = client.watch()
        assert (await following(snapshots)).wishes == Wishes()
        assert await client.lead("mini2") == 1
        assert (await following(snapshots)).wishes == Wishes(1, leader="mini2")
        assert await client.lead("mini2") == 2
        assert (await following(snapshots)).wishes == Wishes(2, leader="mini2")
        assert await client.drain(False) == 3
        assert (await following(snapshots)).wishes == Wishes(3, leader="mini2", draining=False)
        assert await client.lead("") == 4
        assert (await following(snapshots)).wishes == Wishes(4, leader="", draining=False)
        await snapshots.aclose()


async def test_a_node_that_there_is_not_is_refused_and_changes_nothing() -> None:
    async with supervised(NODES) as client:
        with pytest.raises(InvalidMessage, match="no 'mini9'; the nodes are mini1, mini2, master"):
            await client.lead("mini9")
        assert (await client.status()).wishes == Wishes()


async def test_without_a_launcher_nothing_is_promised() -> None:
    async with supervised(()) as client:
        for call in (client.lead("mini2"), client.lead(""), client.drain(True)):
            with pytest.raises(Refused, match="python -m launcher"):
                await call
        assert (await client.status()).wishes == Wishes()


def test_the_book_refuses_before_it_counts() -> None:
    book = WishBook(NODES)
    with pytest.raises(CoordinatorError):
        book.lead("mini9")
    book.drain(True)
    assert book.wishes == Wishes(1, draining=True)


@pytest.mark.parametrize(
    "wishes", [Wishes(), Wishes(1, leader=""), Wishes(2, "mini2", False), Wishes(9, None, True)]
)
def test_wishes_travel_whole(wishes: Wishes) -> None:
    snapshot = ClusterSnapshot(7, 3, 0, (), wishes)
    assert messages.cluster_from(messages.cluster_to(snapshot)) == snapshot
