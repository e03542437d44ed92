"""A job whose ranks wait: `server.standby` on each host, until `assign` says who of them is which rank."""

from __future__ import annotations

import selectors
import subprocess
import time
from contextlib import suppress
from dataclasses import replace

from launcher.hostfile import Hostfile
from launcher.job import Job, JobSpec, Relay
from launcher.outcome import ERROR_STATUS, Outcome, RankFailure
from launcher.session import kill_session
from server.standby.assignment import Assignment, Word, heard

ASSIGN = b"a"
ANSWER_SECONDS = (
    10.0  # from an assignment until all that it names have understood it, who may be swapped out
)


class StandbyJob(Job):
    """`warm` and `gone` are read from any thread: who has imported everything, and who has ended, by place."""

    def __init__(self, spec: JobSpec, relay: Relay) -> None:
        super().__init__(replace(spec, standby=True), relay)
        self.warm: frozenset[int] = frozenset()
        self.gone: frozenset[int] = frozenset()
        self._assignment: Assignment | None = None
        self._answer_by: float | None = None
        self._taken: set[int] = set()

    def assign(self, assignment: Assignment) -> None:
        """Let those who wait start as these ranks, from any thread, once.  They get ANSWER_SECONDS to begin."""
        self._assignment = assignment
        self._wake(ASSIGN)

    def _woken(self, process: subprocess.Popen[bytes], why: bytes) -> None:
        assert process.stdin
        if ASSIGN in why and not process.stdin.closed:
            assert self._assignment
            self._transcript.places = self._assignment.places
            self._answer_by = time.monotonic() + ANSWER_SECONDS
            with suppress(BrokenPipeError):  # mlx.launch has ended, which its pipes tell, too
                process.stdin.write(self._assignment.line())
                process.stdin.flush()
            self._give_up_if_gone()
        super()._woken(process, why)

    def _is_open(self, process: subprocess.Popen[bytes], selector: selectors.BaseSelector) -> bool:
        if self._answer_by is not None and time.monotonic() > self._answer_by:
            self._answer_by = None
            late = ", ".join(str(rank) for rank in self._silent)
            sentence = f"rank {late} was waiting and has not begun within {ANSWER_SECONDS:g} s"
            self._transcript.unresponsive.append(sentence)
            self._transcript.stopping = True  # who is killed now has not failed
            kill_session(process.pid)
        return super()._is_open(process, selector)

    def _give_up_if_gone(self) -> None:
        """Who ends in the moment of the assignment has not heard it, and the others would wait for it."""
        if self._assignment is None or self._transcript.stopping:
            return
        for rank, place in enumerate(self._assignment.places):
            if place in self.gone:
                self._transcript.causes.append(f"rank {rank} had ended while it waited")
                self._transcript.failures.append(RankFailure(rank, ERROR_STATUS))
                self._transcript.stopping = True  # who is killed now has not failed
                self._answer_by = None
                self._kill_within(0.0)
                return

    @property
    def _silent(self) -> list[int]:
        """Ranks that have not said that they begin."""
        assert self._assignment
        return [r for r, place in enumerate(self._assignment.places) if place not in self._taken]

    def _take_in(self, line: str, is_error: bool) -> None:
        news = heard(line)
        if news is None:
            super()._take_in(line, is_error)
            return
        place, word = news
        if word is Word.WARM:
            self.warm |= {place}
        elif word is Word.GONE:
            self.gone |= {place}
            self._give_up_if_gone()
        else:
            self._taken.add(place)
            if not self._silent:
                self._answer_by = None

    def _explained(self, outcome: Outcome, status: int, hosts: Hostfile) -> Outcome:
        if self._assignment is None:
            return outcome  # nobody asks why
        ranks = tuple(hosts.hosts[place] for place in self._assignment.places)
        return super()._explained(outcome, status, replace(hosts, hosts=ranks))
