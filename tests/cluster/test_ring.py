"""The tensor plane alone, over two real ranks."""

from __future__ import annotations

import sys

import pytest

from tests.cluster.conftest import Start, require_mpi
from tests.cluster.harness import START_DEADLINE, Spec

COMMAND = (sys.executable, "-m", "tests.cluster.permuted")


@pytest.mark.parametrize("backend", ["ring", "mpi"])
def test_tensors_arrive_in_the_order_of_sending(start: Start, backend: str) -> None:
    if backend == "mpi":
        require_mpi()
    cluster = start(Spec(ranks=2, backend=backend, command=COMMAND, bare=True))
    assert cluster.wait_ended(START_DEADLINE) == 0, cluster.log
    assert all(f"rank {rank} is done" in cluster.log for rank in range(2)), cluster.log
