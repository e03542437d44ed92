"""What an epoch makes of what rank 0 says, without any rank."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from config import load
from launcher.decide import Cause
from launcher.epoch import RunningEpoch
from launcher.hostfile import local_hostfile
from launcher.job import Job, JobSpec
from launcher.nodes import Cluster
from launcher.outcome import Outcome
from launcher.probe import HealthProbe
from launcher.watch import RankView, Report

PATIENCE = -1.0  # seconds: any silence is too long


class Probe(HealthProbe):
    """Rank 0 answers once."""

    def __init__(self, report: Report) -> None:
        self._reports = [report]

    async def ask(self, member: object) -> Report | None:
        return self._reports.pop() if self._reports else None


@pytest.fixture
def cluster(tmp_path: Path) -> Cluster:
    hostfile = tmp_path / "hostfile.json"
    hostfile.write_text(local_hostfile(2))
    return Cluster.of(load(None, {}).config, hostfile)


@pytest.mark.parametrize(("asked", "cause"), [(True, Cause.STOPPED), (False, Cause.DIED)])
def test_silence_is_a_fault_unless_the_ranks_were_asked_to_stop(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: bool, cause: Cause
) -> None:
    monkeypatch.setattr(Job, "run", lambda job: Outcome(0))
    monkeypatch.setattr("asyncio.to_thread", _later)
    ranks = tuple(RankView(n, member.name, "ready") for n, member in enumerate(cluster.members))
    probe = Probe(Report(True, "", 0, 0, ranks))

    async def live() -> Cause:
        job = Job(JobSpec(("true",), tmp_path / "hostfile.json"), lambda line, error: None)
        epoch = RunningEpoch(1, cluster.members, job, PATIENCE, lambda: None)
        await epoch.look(probe)
        if asked:
            epoch.stop("stopped")
        await epoch.look(probe)
        await epoch.wait()
        return epoch.cause

    assert asyncio.run(live()) is cause


async def _later(run: object) -> Outcome:
    """A job that ends once the loop has nothing else to do."""
    for _ in range(10):
        await asyncio.sleep(0)
    return Outcome(0)
