from __future__ import annotations

import pytest

from server.rpc.errors import Overloaded
from server.rpc.records import ClusterSnapshot
from server.rpc.watchers import Watchers

pytestmark = pytest.mark.anyio


def state(revision: int) -> ClusterSnapshot:
    return ClusterSnapshot(epoch=7, size=3, config_revision=revision, ranks=())


async def test_a_slow_watcher_skips_to_the_latest_state() -> None:
    watchers = Watchers()
    stream = watchers.watch(state(0))
    assert await anext(stream) == state(0)
    for revision in range(1, 100):
        watchers.publish(state(revision))
    assert await anext(stream) == state(99)
    watchers.publish(state(100))
    watchers.close()
    assert [late async for late in stream] == []
    assert len(watchers) == 0


async def test_a_watcher_that_leaves_makes_room() -> None:
    watchers = Watchers(limit=1)
    first = watchers.watch(state(0))
    await anext(first)
    with pytest.raises(Overloaded, match="1 watchers are connected"):
        await anext(watchers.watch(state(0)))
    await first.aclose()
    assert await anext(watchers.watch(state(1))) == state(1)
