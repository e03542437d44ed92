"""scripts/chaos.py in short, with a small model: whoever asks for tokens does not notice what happens."""

from __future__ import annotations

from pathlib import Path

import pytest

import chaos
from hostlib.hosts import obstacle
from tests.cluster.tiny import make_folder

pytestmark = [pytest.mark.chaos, pytest.mark.ranks]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("models") / "tiny", "llama")


def run(model: Path, *arguments: str) -> int:
    return chaos.main(["--model", str(model), "--random-prompts", "--length", "400", *arguments])


@pytest.mark.parametrize("sampling", [(), ("--seeded",)])
def test_ranks_that_are_killed_in_turn(model: Path, sampling: tuple[str, ...]) -> None:
    assert run(model, *sampling) == 0


def test_random_faults_in_a_row(model: Path) -> None:
    assert run(model, "--faults", "6") == 0


def test_faults_of_hosts(model: Path) -> None:
    if reason := obstacle():
        pytest.skip(reason)
    assert run(model, "--hosts", "--faults", "3", "--kinds", "link", "partition", "power") == 0
