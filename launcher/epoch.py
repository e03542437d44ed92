"""One launch of the ring: its job in a thread, and what rank 0 says of it, until it has ended."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from launcher.decide import Cause, Epoch, Phase
from launcher.hostfile import HostfileError
from launcher.job import Job, JobError
from launcher.nodes import Member
from launcher.outcome import CONSEQUENCES, Outcome
from launcher.probe import HealthProbe
from launcher.start_watch import StartWatch
from launcher.watch import Fault, RankView, Watch, WishView
from server import exit_status

# The end of a rank that can do nothing for it.
BLAMELESS = (*CONSEQUENCES, exit_status.TOO_FEW)


@dataclass
class Times:
    """When it happened, in seconds of the monotonic clock; None: not yet."""

    launched: float = field(default_factory=time.monotonic)
    answered: float | None = None  # rank 0's ports are open: all ranks have met
    ready: float | None = None
    faulted: float | None = None  # it was known that it can't go on
    ended: float | None = None


@dataclass(frozen=True)
class Patience:
    """In seconds: how long rank 0 may be silent, and how long a start may come no further."""

    silence: float
    start: float


class RunningEpoch:
    """An epoch from its launch to its end.  All methods belong to the event loop."""

    def __init__(
        self,
        number: int,
        members: Sequence[Member],
        job: Job,
        patience: Patience,
        changed: Callable[[], None],
        running: Awaitable[Outcome] | None = None,
    ) -> None:
        """`changed` is called when something has happened.
        `running`: the end of a job that runs already, whose ranks have waited.
        """
        self.number = number
        self.members = tuple(members)
        self.times = Times()
        self.watch = Watch([member.name for member in members], patience.silence)
        self._start = StartWatch(
            self.order, patience.start, self.times.launched, self.leader.health_at
        )
        self.asked_to_stop = ""
        self.outcome: Outcome | None = None
        self.granted = WishView()  # of what the coordinator was asked
        self._changed = changed
        self._news = asyncio.Event()
        loop = asyncio.get_running_loop()
        job.on_step = lambda: loop.call_soon_threadsafe(self._news.set)
        self.waited = running is not None
        self._job = job
        run = asyncio.to_thread(job.run) if running is None else running
        self._running = asyncio.create_task(self._run(run), name=f"epoch {number}")

    @property
    def order(self) -> tuple[str, ...]:
        return tuple(member.name for member in self.members)

    @property
    def leader(self) -> Member:
        return self.members[0]

    @property
    def ended(self) -> bool:
        return self._running.done()

    @property
    def ranks(self) -> tuple[RankView, ...]:
        """As rank 0 last saw them."""
        return self.watch.report.ranks if self.watch.report is not None else ()

    @property
    def asked(self) -> WishView:
        """What operators have asked of this epoch's coordinator."""
        return self.watch.report.wishes if self.watch.report is not None else WishView()

    def view(self, in_flight: int) -> Epoch:
        """For a decision; `in_flight`: requests that the front door has."""
        if self.asked_to_stop:
            phase = Phase.ENDING
        else:
            phase = Phase.STARTING if self.times.ready is None else Phase.READY
        fault = self.watch.fault
        idle = self.watch.idle_since if in_flight == 0 else None
        return Epoch(self.order, phase, self.times.ready, idle, fault.reason if fault else "")

    async def news(self, seconds: float) -> None:
        """Wait until a rank has said that it has come further, at most so long."""
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._news.wait(), seconds)
        self._news.clear()

    async def look(self, probe: HealthProbe) -> None:
        """Ask rank 0 once."""
        report = await probe.ask(self.leader)
        now = time.monotonic()
        if self.ended or self.asked_to_stop:
            return  # its ports close before it has ended, which is nobody's fault
        if report is None:
            self.watch.silent(now)
        elif [rank.node for rank in report.ranks] == list(self.order)[: len(report.ranks)]:
            self.times.answered = self.times.answered or now
            self.watch.answered(report, now)
        if self.watch.ready_at is not None and self.times.ready is None:
            self.times.ready = now
            self._job.serving()
            self._changed()
        if self.times.ready is None:
            self._start.seen(self._job.steps, self.times.answered is not None, now)
            self.watch.give_up(self._start.fault(now))
        if self.watch.fault is not None and self.times.faulted is None:
            self.times.faulted = now
            self._changed()

    def stop(self, reason: str, at_once: bool = False) -> None:
        """Ask the ranks to stop; `at_once`: kill them."""
        self.asked_to_stop = self.asked_to_stop or reason
        self.times.faulted = self.times.faulted or time.monotonic()
        self._job.stop()
        if at_once:
            self._job.stop()

    async def wait(self) -> None:
        """Until nothing of it is left."""
        await asyncio.wait({self._running})

    @property
    def cause(self) -> Cause:
        """How it ended."""
        if self.asked_to_stop and self.watch.fault is None:
            return Cause.STOPPED
        failure = self.outcome.first_failure if self.outcome is not None else None
        if failure is not None and failure.code == exit_status.TOO_FEW:
            return Cause.TOO_FEW
        return Cause.NEVER_STARTED if self.times.ready is None else Cause.DIED

    @property
    def fault(self) -> Fault:
        """Why it ended, and whose fault that was, if anybody's."""
        if self.watch.fault is not None:
            return self.watch.fault
        assert self.outcome is not None, "it has ended"
        reason = "; ".join(self.outcome.reasons) or "the ranks have ended"
        failure = self.outcome.first_failure
        if failure is None or failure.code in BLAMELESS:
            return Fault(reason)
        return Fault(reason, self.order[failure.rank] if failure.rank < len(self.order) else None)

    async def _run(self, job: Awaitable[Outcome]) -> None:
        try:
            self.outcome = await job
        except (HostfileError, JobError) as error:
            self.outcome = Outcome(2, (str(error),))
        finally:
            now = time.monotonic()
            self.times.faulted = self.times.faulted or now
            self.times.ended = now
            self._changed()
