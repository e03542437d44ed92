"""Timelines of real ranks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import timeline as script
from tests.cluster.harness import Cluster, Spec
from tests.cluster.prompts import prompt


def test_every_rank_of_a_cluster_writes_one(
    tmp_path: Path, demo_model: Path, start: Callable[[Spec], Cluster]
) -> None:
    folder = tmp_path / "timelines"
    cluster = start(Spec(ranks=2, settings=(f"tracing.folder={folder}",))).wait_ready()
    cluster.complete(prompt(demo_model, 40), 8)
    cluster.stop()
    first, last = script.rows(script.read(folder))
    assert first["stage"].startswith("0 ")
    assert last["stage"].startswith("1 ")
    for row in (first, last):
        assert row["steps"] >= 9  # of the prompt and of eight tokens
        assert 0 < row["compute"] < 100
        assert row["python_us"] > 0
