"""Real jobs of mlx.launch whose ranks wait, with small ranks."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import psutil
import pytest

from launcher import standby_job
from launcher.hostfile import local_hostfile
from launcher.job import JobSpec
from launcher.outcome import Outcome, RankFailure
from launcher.standby_job import StandbyJob
from server.standby.assignment import VERSION, Assignment
from tests.launcher.processes import DEADLINE, is_running, wait_for

WAITING = str(Path(__file__).with_name("waiting.py"))

pytestmark = pytest.mark.ranks


class Run:
    """A job in a thread, and what its ranks have said."""

    def __init__(self, hostfile: Path) -> None:
        self.lines: list[str] = []
        self.outcome: Outcome | None = None
        command = (sys.executable, WAITING, "first")
        self.job = StandbyJob(
            JobSpec(command, hostfile, grace=20.0), lambda line, error: self.lines.append(line)
        )
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        self.outcome = self.job.run()

    @property
    def pids(self) -> dict[int, int]:
        """By place."""
        found = re.findall(r"^waiting (\d+) (\d+)$", "\n".join(self.lines), re.MULTILINE)
        return {int(place): int(pid) for place, pid in found}

    @property
    def ranks(self) -> set[str]:
        return {line for line in self.lines if line.startswith("rank ")}

    def assign(self, *places: int) -> None:
        self.job.assign(
            Assignment(
                version=VERSION,
                epoch=1,
                places=places,
                ring=tuple((f"127.0.0.1:{n}",) for n in range(len(places))),
                arguments=("second",),
            )
        )

    def finish(self) -> Outcome:
        self.thread.join(DEADLINE)
        assert self.outcome is not None
        return self.outcome


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], Run]]:
    runs: list[Run] = []
    monkeypatch.setattr(standby_job, "ANSWER_SECONDS", DEADLINE)

    def start() -> Run:
        hostfile = tmp_path / "hostfile.json"
        hostfile.write_text(local_hostfile(3))
        runs.append(Run(hostfile))
        wait_for(lambda: runs[-1].job.warm == {0, 1, 2})
        return runs[-1]

    yield start
    for started in runs:
        started.job.stop()
        started.job.stop()
        started.finish()
        assert not [pid for pid in started.pids.values() if is_running(pid)]


def test_they_become_the_ranks_they_are_told_to_be(run: Callable[[], Run]) -> None:
    """One is left out and ends, which disturbs nobody; another one's failure is that of its rank."""
    job = run()
    job.assign(2, 0)
    ring = '[["127.0.0.1:0"],["127.0.0.1:1"]]'
    expected = {
        f"rank {rank} at {place} in {ring} with first second" for rank, place in [(0, 2), (1, 0)]
    }
    wait_for(lambda: job.ranks == expected)
    wait_for(lambda: not is_running(job.pids[1]))
    os.kill(job.pids[0], signal.SIGKILL)
    outcome = job.finish()
    assert outcome.first_failure == RankFailure(1, -signal.SIGKILL)
    assert outcome.reasons == ("rank 1 was killed by SIGKILL",)


def test_one_that_is_lost_while_it_waits_costs_the_others_nothing(run: Callable[[], Run]) -> None:
    job = run()
    os.kill(job.pids[1], signal.SIGKILL)
    wait_for(lambda: job.job.gone == {1})
    job.assign(0)
    wait_for(lambda: job.ranks == {"rank 0 at 0 in  with first second"})
    job.job.stop()
    assert job.finish() == Outcome(0, stopped=True)


def test_one_that_ends_when_all_are_told_is_not_waited_for(run: Callable[[], Run]) -> None:
    """It was there when the choice was made."""
    job = run()
    os.kill(job.pids[1], signal.SIGKILL)
    wait_for(lambda: job.job.gone == {1})
    job.assign(0, 1)
    outcome = job.finish()
    assert outcome.first_failure == RankFailure(1, 1)
    assert outcome.reasons == ("rank 1 had ended while it waited",)


def test_nothing_outlives_a_launcher_that_was_killed(tmp_path: Path) -> None:
    hostfile = tmp_path / "hostfile.json"
    hostfile.write_text(local_hostfile(2))
    program = (
        "import sys; from pathlib import Path; from launcher.job import JobSpec;"
        "from launcher.standby_job import StandbyJob;"
        f"spec = JobSpec((sys.executable, {WAITING!r}), Path({str(hostfile)!r}), grace=2.0);"
        "StandbyJob(spec, lambda line, error: print(line, flush=True)).run()"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as launcher:
        assert launcher.stdout is not None
        said = (re.fullmatch(r"waiting \d+ (\d+)\n", line.decode()) for line in launcher.stdout)
        try:
            pids = [int(match[1]) for match in islice(filter(None, said), 2)]
            jobs = [child.pid for child in psutil.Process(launcher.pid).children(recursive=True)]
        finally:
            launcher.kill()
    assert set(pids) <= set(jobs)
    wait_for(lambda: not any(map(is_running, jobs)))


def test_nobody_is_needed_any_more(run: Callable[[], Run]) -> None:
    job = run()
    job.job.stop()
    assert job.finish() == Outcome(0, stopped=True)


def test_when_all_are_lost_the_job_ends(run: Callable[[], Run]) -> None:
    job = run()
    for pid in job.pids.values():
        os.kill(pid, signal.SIGKILL)
    assert job.finish().first_failure is None
    assert job.job.gone == {0, 1, 2}


def test_who_does_not_answer_is_not_waited_for(
    run: Callable[[], Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As behind a connection that is open on this side only."""
    monkeypatch.setattr(standby_job, "ANSWER_SECONDS", 0.5)
    job = run()
    os.kill(job.pids[2], signal.SIGSTOP)
    job.assign(2)
    outcome = job.finish()
    assert outcome.reasons == ("rank 0 was waiting and has not begun within 0.5 s",)
    assert outcome.first_failure is None
