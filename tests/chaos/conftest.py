"""A small model and clusters of it, for one test each."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from benchlib.targets import Setup
from chaoslib.answers import tasks
from chaoslib.cluster import MODEL, Cluster
from chaoslib.load import Load
from chaoslib.on_hosts import HostCluster
from chaoslib.trial import Trial, connections
from hostlib.hosts import Hosts, obstacle
from tests.cluster.tiny import make_folder

STREAMS, PLAIN = 4, 2
TOKENS = 200

Start = Callable[..., Cluster]


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("models") / "tiny", "llama")


@contextmanager
def on_three_hosts(model: Path, place: Path, *settings: str) -> Iterator[HostCluster]:
    """A cluster that serves, on hosts of its own; skips where they can't be made."""
    if reason := obstacle():
        pytest.skip(reason)
    (place / "hosts").mkdir()
    with Hosts(place / "hosts") as hosts:
        environment = Setup(model).environment()
        made = HostCluster(hosts, place / "cluster", model, environment, settings)
        try:
            made.start()
            yield made
        finally:
            made.kill()


@pytest.fixture
def start(model: Path, tmp_path: Path) -> Iterator[Start]:
    """Start a cluster with more settings. What the test has not ended is killed."""
    started: list[Cluster] = []

    def run(*settings: str) -> Cluster:
        environment = Setup(model).environment()
        started.append(Cluster(tmp_path / f"cluster{len(started)}", model, environment, settings))
        started[-1].start()
        return started[-1]

    yield run
    for cluster in started:
        cluster.kill()


def prepared(cluster: Cluster) -> Trial:
    """A trial that knows the answers of a cluster on which nothing is wrong."""
    wanted = tasks(MODEL, STREAMS, PLAIN, TOKENS, words=False, seeded=False)

    async def ask() -> Trial:
        async with connections(cluster.url) as http:
            known = await Load(http).once(wanted)
        assert not [answer.error for answer in known.values() if answer.error]
        return Trial(cluster, wanted, known)

    return asyncio.run(ask())
