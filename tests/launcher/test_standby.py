"""The keeper of those who wait, with jobs that only say that they run."""

from __future__ import annotations

import asyncio
import io
import threading
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import pytest

from config import load
from launcher import standby
from launcher.hostfile import local_hostfile
from launcher.job import JobSpec, Relay
from launcher.logs import LogStream
from launcher.nodes import Cluster
from launcher.outcome import Outcome
from launcher.standby import Standby
from launcher.standby_grounds import Grounds
from server.standby.assignment import Assignment
from tests.launcher.processes import DEADLINE

SETTLE = 8.0
NAMES = ("mini1", "mini2", "master")
ALL, NONE = frozenset((0, 1, 2)), frozenset[int]()


class FakeJob:
    """Runs until it is stopped."""

    made: list[FakeJob]

    def __init__(self, spec: JobSpec, relay: Relay) -> None:
        self.warm, self.gone = NONE, NONE
        self.hostfile = spec.hostfile.read_text()
        self.assigned: list[Assignment] = []
        self.ended = threading.Event()
        self.made.append(self)

    def run(self) -> Outcome:
        assert self.ended.wait(DEADLINE)
        return Outcome(0)

    def assign(self, assignment: Assignment) -> None:
        self.assigned.append(assignment)

    def stop(self) -> None:
        self.ended.set()


@pytest.fixture
def jobs(monkeypatch: pytest.MonkeyPatch) -> list[FakeJob]:
    FakeJob.made = []
    monkeypatch.setattr(standby, "StandbyJob", FakeJob)
    return FakeJob.made


@pytest.fixture
def live(tmp_path: Path) -> Callable[[Callable[[Standby], Awaitable[None]]], None]:
    """Runs a test with a keeper; at the end of it nothing of it runs."""
    hostfile = tmp_path / "hostfile.json"
    hostfile.write_text(local_hostfile(3))
    config = load(None, {}).config
    cluster = Cluster.of(config, hostfile)
    spec = JobSpec(("true",), tmp_path / "standby.json", starting_port=100)

    async def run(test: Callable[[Standby], Awaitable[None]]) -> None:
        logs = LogStream(out=io.StringIO(), error=io.StringIO())
        made = Standby(Grounds(spec, cluster, config.model), SETTLE, logs)
        await test(made)
        await made.end()
        assert asyncio.all_tasks() == {asyncio.current_task()}
        logs.close()

    return lambda test: asyncio.run(run(test))


Live = Callable[[Callable[[Standby], Awaitable[None]]], None]


def test_who_is_ready_is_told_its_rank(jobs: list[FakeJob], live: Live) -> None:
    async def test(keeper: Standby) -> None:
        keeper.tend(SETTLE - 1, 0.0, NAMES)
        assert (jobs, keeper.document()["state"]) == ([], "none")
        keeper.tend(SETTLE, 0.0, NAMES)
        [job] = jobs
        assert job.hostfile.count("127.0.0.1") == 6
        assert keeper.document() == {"state": "warming", "nodes": [], "reason": ""}
        job.warm = ALL
        assert keeper.document() == {"state": "warm", "nodes": list(NAMES), "reason": ""}
        job.gone = frozenset({1})
        assert keeper.document() == {
            "state": "incomplete",
            "nodes": ["mini1", "master"],
            "reason": "",
        }
        taken = keeper.take(7, ["master", "mini1"], ["--set", "a=b"])
        assert taken is not None
        [told] = job.assigned
        assert (told.epoch, told.places, told.arguments) == (7, (2, 0), ("--set", "a=b"))
        assert told.ring == (("127.0.0.1:100",), ("127.0.0.1:101",))
        assert keeper.document()["state"] == "none"
        assert not job.ended.is_set()  # it belongs to the epoch now
        job.stop()
        assert await taken[1] == Outcome(0)

    live(test)


def test_a_launch_waits_for_nobody(jobs: list[FakeJob], live: Live) -> None:
    """Those who are not all ready are ended instead, so that they are not in its way."""

    async def test(keeper: Standby) -> None:
        keeper.tend(SETTLE, 0.0, NAMES)
        jobs[0].warm = frozenset({0, 1})
        assert keeper.take(2, NAMES, ()) is None
        assert jobs[0].ended.is_set()
        assert jobs[0].assigned == []

    live(test)


def test_one_that_has_ended_is_begun_again_later(jobs: list[FakeJob], live: Live) -> None:
    async def test(keeper: Standby) -> None:
        keeper.tend(SETTLE, 0.0, NAMES)
        jobs[0].stop()
        while keeper.document()["state"] != "none":
            await asyncio.sleep(0.01)
            keeper.tend(SETTLE, 0.0, NAMES)
        keeper.tend(2 * SETTLE, 0.0, NAMES)
        assert len(jobs) == 1  # twice as long after it failed
        keeper.tend(3 * SETTLE, 0.0, NAMES)
        assert len(jobs) == 2

    live(test)


def test_a_node_that_is_back_is_included(jobs: list[FakeJob], live: Live) -> None:
    async def test(keeper: Standby) -> None:
        keeper.tend(SETTLE, 0.0, NAMES[:2])
        keeper.tend(2 * SETTLE, 0.0, NAMES)
        assert jobs[0].ended.is_set()
        keeper.tend(2 * SETTLE, 0.0, NAMES)
        assert len(jobs) == 2
        assert jobs[1].hostfile.count("127.0.0.1") == 6

    live(test)


def test_settings_that_change_hold_from_now_on(jobs: list[FakeJob], live: Live) -> None:
    async def test(keeper: Standby) -> None:
        grounds = keeper._grounds
        keeper.tend(SETTLE, 0.0, NAMES)
        keeper.use(None, SETTLE)
        assert jobs[0].ended.is_set()
        keeper.tend(10 * SETTLE, 0.0, NAMES)
        assert keeper.document()["state"] == "off"
        keeper.use(grounds, 20 * SETTLE)
        keeper.tend(20 * SETTLE, 0.0, NAMES)
        assert len(jobs) == 1  # the latest was begun less than that ago
        keeper.tend(21 * SETTLE, 0.0, NAMES)
        assert len(jobs) == 2

    live(test)


def test_who_waits_goes_on_where_its_grounds_still_hold(jobs: list[FakeJob], live: Live) -> None:
    """A node that was taken out, or added, is no reason to end those on the others."""

    async def test(keeper: Standby) -> None:
        grounds = keeper._grounds
        assert grounds is not None
        keeper.tend(SETTLE, 0.0, NAMES)
        [job] = jobs
        job.warm = ALL
        fewer = replace(grounds.cluster, members=grounds.cluster.members[1:])
        keeper.use(replace(grounds, cluster=fewer), SETTLE)
        keeper.tend(SETTLE, 0.0, NAMES[1:])
        assert not job.ended.is_set()
        taken = keeper.take(2, ["master", "mini2"], ())
        assert taken is not None
        assert job.assigned[0].places == (2, 1)
        job.stop()
        await taken[1]

    live(test)
