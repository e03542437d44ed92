"""scripts/chaos.py in short, with a small model: whoever asks for tokens does not notice what happens."""

from __future__ import annotations

from pathlib import Path

import pytest

import chaos
from chaoslib.faults import ON_HOSTS, ON_ONE_MACHINE
from hostlib.hosts import obstacle
from tests.cluster.conftest import require_mpi

pytestmark = [pytest.mark.chaos, pytest.mark.ranks]
LENGTH = 400  # tokens: long enough to be in the middle when a fault comes


def run(model: Path, *arguments: str) -> int:
    return chaos.main(
        ["--model", str(model), "--random-prompts", "--length", str(LENGTH), *arguments]
    )


@pytest.mark.parametrize("sampling", [(), ("--seeded",)])
def test_ranks_that_are_killed_in_turn(model: Path, sampling: tuple[str, ...]) -> None:
    assert run(model, *sampling) == 0


def test_random_faults_in_a_row(model: Path) -> None:
    """Two of each kind: a rank is killed, one is stopped, mlx.launch is killed."""
    assert run(model, "--faults", str(2 * len(ON_ONE_MACHINE))) == 0


def test_faults_over_mpi(model: Path) -> None:
    require_mpi()
    assert run(model, "--backend", "mpi", "--faults", str(len(ON_ONE_MACHINE))) == 0


def test_faults_of_hosts(model: Path) -> None:
    if reason := obstacle():
        pytest.skip(reason)
    kinds = set(ON_HOSTS).difference(ON_ONE_MACHINE)
    assert run(model, "--hosts", "--faults", str(len(kinds)), "--kinds", *sorted(kinds)) == 0
