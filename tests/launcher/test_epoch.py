"""What an epoch makes of what rank 0 says, without any rank."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import pytest

from config import load
from launcher.decide import Cause
from launcher.epoch import Patience, RunningEpoch
from launcher.hostfile import local_hostfile
from launcher.job import Job, JobSpec
from launcher.nodes import Cluster
from launcher.outcome import Outcome
from launcher.probe import HealthProbe
from launcher.watch import RankView, Report
from server.progress import Step, said
from tests.launcher.processes import DEADLINE, RANK, is_running, wait_for

NONE = Patience(silence=-1.0, start=600.0)  # any silence is too long


class Probe(HealthProbe):
    """Rank 0 answers so often."""

    def __init__(self, *reports: Report) -> None:
        self._reports = list(reports)

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
        epoch = RunningEpoch(1, cluster.members, job, NONE, lambda: None)
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


@pytest.mark.ranks
def test_ranks_that_never_say_anything_are_given_up(cluster: Cluster, tmp_path: Path) -> None:
    """They run and rank 0 does not answer, as behind a firewall: nothing else would end that."""
    command = (sys.executable, RANK, "stubborn")
    lines: list[str] = []

    async def live() -> RunningEpoch:
        changed = asyncio.Event()
        job = Job(JobSpec(command, tmp_path / "hostfile.json"), lambda line, _: lines.append(line))
        patience = Patience(silence=600.0, start=0.0)
        epoch = RunningEpoch(1, cluster.members, job, patience, changed.set)
        await asyncio.to_thread(wait_for, lambda: len(lines) == 2)
        await epoch.look(Probe())
        assert changed.is_set()
        assert epoch.view(0).fault
        epoch.stop(epoch.view(0).fault, at_once=True)
        await epoch.wait()
        return epoch

    epoch = asyncio.run(live())
    assert epoch.cause is Cause.NEVER_STARTED
    assert "nothing has been heard of the start of mini1, mini2" in epoch.fault.reason
    pids = [int(line.split()[2]) for line in lines]
    assert not any(map(is_running, pids))


@pytest.mark.ranks
def test_what_a_rank_says_of_its_start_is_heard_at_once(cluster: Cluster, tmp_path: Path) -> None:
    step = Step(3, 40, "loading layers 0-9")
    command = (sys.executable, "-c", f"print({said(1, step)!r})")
    lines: list[str] = []

    async def live() -> None:
        job = Job(JobSpec(command, tmp_path / "hostfile.json"), lambda line, _: lines.append(line))
        epoch = RunningEpoch(1, cluster.members, job, NONE, lambda: None)
        await asyncio.wait_for(epoch.news(10 * DEADLINE), DEADLINE)
        assert job.steps == {1: step}
        await epoch.wait()

    asyncio.run(live())
    assert lines == []  # nothing of it is for the user
