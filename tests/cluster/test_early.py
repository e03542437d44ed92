"""Steps that begin when their input is announced: the same output as when it is waited for."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.cluster.conftest import require_mpi
from tests.cluster.harness import Cluster, Spec
from tests.cluster.prompts import prompt


@pytest.mark.parametrize("backend", ["ring", "mpi"])
def test_early_receives_change_nothing(
    start: Callable[[Spec], Cluster], three: Cluster, demo_model: Path, backend: str
) -> None:
    if backend == "mpi":
        require_mpi()
    spec = Spec(ranks=3, backend=backend, settings=("network.early_receive=true",))
    cluster = start(spec).wait_ready()
    prompts = [prompt(demo_model, 20 + 150 * n, seed=60 + n) for n in range(4)]
    expected = [three.complete(ids, 16)["text"] for ids in prompts]
    with ThreadPoolExecutor(len(prompts)) as pool:
        made = list(pool.map(lambda ids: cluster.complete(ids, 16)["text"], prompts))
    assert made == expected
    cluster.stop()
