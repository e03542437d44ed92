"""Trials on a cluster of these tests: its ranks are processes that sleep, a small server answers for it."""

from __future__ import annotations

import asyncio
import random
import subprocess
import time
from collections.abc import Callable, Iterator
from itertools import product
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from chaoslib import faults, recoveries, trial
from chaoslib.answers import Answer, tasks
from chaoslib.cluster import Cluster, ClusterFailed
from chaoslib.trial import Event, Result, Trial
from tests.scripts.fake_api import FakeApi, Handler, serving

WORDS = ["a", "b", "c", "d"]
TASKS = tasks("m", 2, 0, len(WORDS), words=True, seeded=False)
KNOWN = {task.name: Answer("abcd", WORDS, "length", (7, 4), {"id"}) for task in TASKS}


class Sleepers(Cluster):
    """Three ranks; one that ends is there again when it is looked for."""

    def __init__(self, url: str) -> None:
        self._url = url
        self.made: list[subprocess.Popen[bytes]] = []
        self.now: dict[int, subprocess.Popen[bytes]] = {}
        self.held, self.extra, self.looks = 0, 0, 0

    @property
    def url(self) -> str:
        return self._url

    @property
    def launcher(self) -> psutil.Process:
        return psutil.Process()

    def ranks(self) -> dict[int, psutil.Process]:
        for rank in range(3):
            if rank not in self.now or self.now[rank].poll() is not None:
                self.now[rank] = subprocess.Popen(["sleep", "600"])
                self.made.append(self.now[rank])
        return {rank: psutil.Process(process.pid) for rank, process in self.now.items()}

    def processes(self) -> list[psutil.Process]:
        return [*self.ranks().values(), *[psutil.Process()] * self.extra]

    def is_ready(self) -> bool:
        return True

    def layers(self) -> dict[str, tuple[int, int]]:
        return {f"n{rank}": (rank, rank) for rank in self.ranks()}

    def status(self) -> dict[str, Any]:
        return {"recoveries": [{"epoch": epoch} for epoch in range(1, self.looks + 1)]}

    def is_settled(self) -> bool:
        return True

    def sequences(self) -> int:
        return self.held

    def recoveries(self) -> int:
        """One more for each look: what has ended is there again at once."""
        self.looks += 1
        return self.looks

    def wait(self, condition: Callable[[], bool], *_: Any, **__: Any) -> None:
        assert condition()

    def failed(self, what: str) -> ClusterFailed:
        return ClusterFailed(what)


def answer(handler: Handler) -> None:
    """With pauses, so that there is time for faults."""
    handler.begin()
    for word in WORDS:
        time.sleep(0.01)
        choice = {"text": word, "finish_reason": None, "logprobs": {"tokens": [word]}}
        handler.event(id="id", choices=[choice])
    handler.event(id="id", choices=[{"text": "", "finish_reason": "length", "logprobs": None}])
    usage = {"prompt_tokens": 7, "completion_tokens": 4}
    handler.event(id="id", choices=[], usage=usage)
    handler.done()


@pytest.fixture
def server() -> Iterator[FakeApi]:
    with serving(answer) as api:
        yield api


@pytest.fixture
def cluster(server: FakeApi) -> Iterator[Sleepers]:
    made = Sleepers(server.url)
    yield made
    for process in made.made:
        process.kill()
        process.wait()


def run(
    cluster: Sleepers, kinds: list[str] | None = None, known: dict[str, Answer] = KNOWN
) -> Result:
    made = Trial(cluster, TASKS, known)
    if kinds is None:
        return asyncio.run(made.turns())
    return asyncio.run(made.faults(kinds, random.Random(1)))


def test_each_rank_is_killed_once(cluster: Sleepers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "FLOWING", 1)
    result = run(cluster)
    assert [event.what for event in result.events] == [f"kill -9 of rank {r}" for r in range(3)]
    assert sum(process.poll() == -9 for process in cluster.made) == 3
    assert result.finished == 3 * len(TASKS)
    assert result.is_good


def test_faults_follow_each_other_under_load(cluster: Sleepers) -> None:
    result = run(cluster, ["kill", "stop", "kill"])
    assert [event.kind for event in result.events] == ["kill", "stop", "kill"]
    assert all(event.next_token_s is not None for event in result.events)
    epochs = [recovery["epoch"] for recovery in result.recoveries]
    assert epochs == list(range(1, cluster.looks + 1)), "each once"
    assert result.finished > len(TASKS)
    assert result.is_good
    assert all(process.status() != psutil.STATUS_STOPPED for process in cluster.ranks().values())


def test_something_is_done_under_load(cluster: Sleepers) -> None:
    done: list[str] = []
    result = asyncio.run(Trial(cluster, TASKS, KNOWN).meanwhile(lambda: done.append("x")))
    assert done == ["x"]
    assert result.finished > len(TASKS)
    assert result.is_good


def test_a_wrong_answer_makes_the_result_bad(cluster: Sleepers) -> None:
    other: dict[str, Answer] = {
        **KNOWN,
        TASKS[0].name: Answer("abce", [*WORDS[:3], "e"], "length", (7, 4)),
    }
    result = run(cluster, ["kill"], other)
    assert not result.is_good
    assert {wrong["task"] for wrong in result.wrong} == {TASKS[0].name}


def test_what_is_left_over_makes_the_result_bad(
    cluster: Sleepers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trial, "IDLE_DEADLINE", 0.1)
    made = Trial(cluster, TASKS, KNOWN)
    before = made.belongings()
    result = Result()
    cluster.held, cluster.extra = 2, 1
    files = [open("/dev/null") for _ in range(trial.FEW_FILES + 1)]  # noqa: SIM115
    try:
        asyncio.run(made.check_leaks(before, result))
    finally:
        for file in files:
            file.close()
    assert not result.is_good
    found = " / ".join(result.leaks)
    assert "2 sequences are held" in found
    assert "open files" in found
    assert "processes are" in found


def test_a_load_that_stands_still_is_told(
    cluster: Sleepers, server: FakeApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trial, "RECOVERY_DEADLINE", 0.2)
    server.answer = lambda handler: time.sleep(0.5)
    with pytest.raises(ClusterFailed, match="no text came"):
        run(cluster, ["kill"])


def test_all_kinds_occur_as_often() -> None:
    found = faults.kinds(4 * len(faults.ON_HOSTS), faults.ON_HOSTS, random.Random(3))
    assert {found.count(kind) for kind in faults.ON_HOSTS} == {4}
    assert found != sorted(found)


def test_faults_of_links_need_hosts(cluster: Sleepers) -> None:
    for kind in set(faults.ON_HOSTS).difference(faults.ON_ONE_MACHINE):
        with pytest.raises(AssertionError, match="needs hosts"):
            faults.choose_fault(cluster, kind, random.Random(1))


def test_all_hosts_are_parted_and_joined_again() -> None:
    apart: set[frozenset[str]] = set()

    def pairs(some: list[str], others: list[str]) -> set[frozenset[str]]:
        return {frozenset(pair) for pair in product(some, others)}

    hosts = SimpleNamespace(
        hosts=["a", "b", "c"],
        part=lambda some, others: apart.update(pairs(some, others)),
        join=lambda some, others: apart.difference_update(pairs(some, others)),
    )
    fault = faults.part_all(SimpleNamespace(hosts=hosts))  # type: ignore[arg-type]
    fault.do()
    assert apart == {frozenset("ab"), frozenset("bc"), frozenset("ac")}
    fault.undo()
    assert apart == set()


# what recoveries consist of


def event(kind: str, wall: float, felt: float | None) -> Event:
    return Event(kind, kind, 0.0, wall, felt)


def recovery(noticed_at: float, cause: str = "died") -> dict[str, Any]:
    parts = {"stop_s": 0.5, "wait_s": 0.0, "launch_s": 1.0, "load_s": 2.0}
    return {"noticed_at": noticed_at, "cause": cause, **parts}


def test_a_recovery_is_split_into_its_parts() -> None:
    events = [event("kill", 100.0, 4.0), event("stop", 200.0, 8.0), event("kill", 300.0, None)]
    found = [recovery(100.25), recovery(203.0), recovery(301.0)]
    first, second = recoveries.split(events, found)
    assert first == {
        "detect": 0.25,
        "stop": 0.5,
        "wait": 0.0,
        "launch": 1.0,
        "load": 2.0,
        "resume": 0.25,
    }
    assert (second["detect"], second["resume"]) == (3.0, 1.5)


def test_recoveries_that_did_not_last_count_for_their_fault() -> None:
    [parts] = recoveries.split([event("kill", 100.0, 8.0)], [recovery(100.5), recovery(104.0)])
    assert (parts["launch"], parts["load"], parts["detect"]) == (2.0, 4.0, 0.5)


def test_a_restart_that_was_asked_for_is_part_of_no_fault() -> None:
    found = [recovery(100.5), recovery(104.0, "stopped")]
    [parts] = recoveries.split([event("kill", 100.0, 8.0)], found)
    assert (parts["launch"], parts["detect"]) == (1.0, 0.5)


def test_the_spread_has_the_parts_and_what_was_felt() -> None:
    events = [event("kill", 100.0, 4.0), event("stop", 200.0, 8.0)]
    rows = {row["part"]: row for row in recoveries.spread(events, [recovery(100.25)])}
    assert rows["detect"]["count"] == 1
    assert rows["next token"]["count"] == 2
    assert rows["next token"]["longest"] == 8.0
    assert rows["next token, stop"]["p50"] == 8.0
    assert "next token, kill" in recoveries.text(events, [])


def test_a_trial_that_was_cut_off_before_any_fault_has_a_table_too() -> None:
    assert recoveries.split([], [{"noticed_at": 1.0, "cause": "died"}]) == []
    assert "next token" in recoveries.text([], [])
