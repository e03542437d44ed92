"""The supervised launcher with real ranks of a small model: two of them are killed, and no client notices."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import pytest

from benchlib.targets import Setup
from chaoslib.answers import tasks
from chaoslib.cluster import MODEL, Cluster
from chaoslib.load import Load
from chaoslib.trial import Result, Trial, connections
from tests.cluster.tiny import make_folder

STREAMS, PLAIN = 2, 1
TOKENS = 300
LAYERS = 6  # of the small model

pytestmark = pytest.mark.ranks


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    model = make_folder(tmp_path / "tiny", "llama")
    made = Cluster(
        tmp_path / "cluster", model, Setup(model).environment(), ["launcher.standby_after=0.1"]
    )
    try:
        made.start()
        yield made
    finally:
        made.kill()


async def kill_first_and_last(cluster: Cluster) -> Result:
    wanted = tasks(MODEL, STREAMS, PLAIN, TOKENS, words=False, seeded=False)
    async with connections(cluster.url) as http:
        known = await Load(http).once(wanted)
    assert not [answer.error for answer in known.values() if answer.error]
    return await Trial(cluster, wanted, known).turns([0, -1])


def test_killed_ranks_go_unnoticed(cluster: Cluster) -> None:
    first = cluster.status()["leader"]
    result = asyncio.run(kill_first_and_last(cluster))
    assert result.finished == 2 * (STREAMS + PLAIN)
    assert (result.wrong, result.leaks) == ([], [])
    for event in result.events:
        held = [range(first, last + 1) for first, last in event.layers.values()]
        assert sorted(chain(*held)) == list(range(LAYERS))
    status = cluster.status()
    assert status["state"] == "serving"
    # Between the two, a node that was left out may have been taken in again on demand.
    died = [recovery for recovery in status["recoveries"] if recovery["cause"] == "died"]
    assert len(died) == 2
    assert [recovery["standby"] for recovery in died] == [True, True]
    killed, _ = died
    assert killed["node"] == first
    assert killed["leader"] != first
    cluster.stop()  # raises if anything is left
