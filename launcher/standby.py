"""The ranks of the next launch, started while this one serves: they wait, see `server.standby`.

When a rank dies, most of what a launch takes is over for them: logging in, starting Python, importing MLX.
One job of mlx.launch has a process on each node that can be reached; who leads, and who takes part, is said
when they are needed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from launcher.hostfile import HostfileError
from launcher.job import JobError
from launcher.logs import LogStream
from launcher.outcome import Outcome
from launcher.standby_grounds import Grounds, why_outdated
from launcher.standby_job import StandbyJob
from launcher.standby_policy import Begin, Drop, Seen, Waiting, choose
from server.standby.assignment import VERSION, Assignment

END_DEADLINE = 10.0  # seconds for those that are not needed; they are killed


@dataclass(frozen=True)
class _Current:
    """The job of those who wait.  `running`: until nothing is left of it."""

    nodes: tuple[str, ...]
    grounds: Grounds
    job: StandbyJob
    running: asyncio.Task[Outcome]

    def view(self) -> Waiting:
        at = dict(enumerate(self.nodes))
        warm = frozenset(at[place] for place in self.job.warm)
        return Waiting(self.nodes, warm, frozenset(at[place] for place in self.job.gone))


class Standby:
    """All methods belong to the event loop."""

    def __init__(self, grounds: Grounds | None, settle: float, logs: LogStream) -> None:
        """`grounds`: what to start them with; None: nobody waits."""
        self._grounds, self._settle, self._logs = grounds, settle, logs
        self._current: _Current | None = None
        self._ending: set[asyncio.Task[Outcome]] = set()
        self._begun_at: float | None = None
        self._failures = 0
        self._ended = ""  # why the latest one ended unused

    def use(self, grounds: Grounds | None, settle: float) -> None:
        """As for a new one, from now on; those who wait go on if what they were started with still holds."""
        self._grounds, self._settle = grounds, settle
        if self._current is not None and (why := why_outdated(self._current.grounds, grounds)):
            self.drop(why)

    def tend(self, now: float, calm_since: float | None, reachable: Sequence[str]) -> None:
        """Begin or end one, as `standby_policy` says; to be called every now and then."""
        if self._grounds is None:
            return
        self._notice_end()
        seen = Seen(
            now, calm_since, tuple(reachable), self._waiting, self._begun_at, self._failures
        )
        choice = choose(seen, self._settle)
        if isinstance(choice, Drop):
            assert seen.waiting is not None
            self._failures += bool(seen.waiting.gone)
            self.drop(choice.reason)
        elif isinstance(choice, Begin):
            self._begun_at = now
            self._begin(self._grounds, choice.nodes)

    def take(
        self, epoch: int, order: Sequence[str], arguments: Sequence[str]
    ) -> tuple[StandbyJob, asyncio.Task[Outcome]] | None:
        """The job that runs these nodes' ranks from now on; None if one has to be started.

        Those who wait and can't be used are ended: they would only be in its way.
        """
        self._notice_end()
        grounds, current, waiting = self._grounds, self._current, self._waiting
        if grounds is None or current is None or waiting is None:
            return None
        if not waiting.will_do(order):
            missing = sorted(set(order) - waiting.ready)
            self.drop(f"nobody is ready on {', '.join(missing)}")
            return None
        self._current, self._failures, self._ended = None, 0, ""
        current.job.assign(
            Assignment(
                version=VERSION,
                epoch=epoch,
                places=tuple(current.nodes.index(name) for name in order),
                ring=grounds.cluster.ring(order, grounds.spec.starting_port),
                arguments=tuple(arguments),
            )
        )
        return current.job, current.running

    def drop(self, reason: str) -> None:
        """End those who wait, if any do."""
        current, self._current = self._current, None
        if current is not None:
            self._ended = reason
            self._logs.say("ending the standby", reason=reason)
            current.job.stop()
            current.job.stop()  # they have nothing to put in order
            self._ending.add(current.running)
            current.running.add_done_callback(self._ending.discard)

    async def end(self) -> None:
        """Drop it, and wait until nothing is left."""
        self.drop("the launcher ends")
        if self._ending:
            await asyncio.wait(self._ending, timeout=END_DEADLINE)

    def document(self) -> dict[str, object]:
        """For status; `reason`: where nobody waits, why the last ones no longer do."""
        waiting = self._waiting
        if waiting is None:
            state = "off" if self._grounds is None else "none"
            return {"state": state, "nodes": [], "reason": self._ended}
        ready = [name for name in waiting.nodes if name in waiting.ready]
        return {"state": waiting.state, "nodes": ready, "reason": ""}

    @property
    def _waiting(self) -> Waiting | None:
        return None if self._current is None else self._current.view()

    def _begin(self, grounds: Grounds, nodes: tuple[str, ...]) -> None:
        text = grounds.cluster.hostfile(nodes)
        grounds.spec.hostfile.write_text(text, encoding="utf-8")
        job = StandbyJob(grounds.spec, self._logs)
        running = asyncio.create_task(asyncio.to_thread(job.run), name="standby")
        self._current = _Current(nodes, grounds, job, running)
        self._logs.say("starting the standby", nodes=", ".join(nodes))

    def _notice_end(self) -> None:
        current = self._current
        if current is None or not current.running.done():
            return
        self._current = None
        self._failures += 1
        try:
            reasons = current.running.result().reasons
        except (HostfileError, JobError) as error:
            reasons = (str(error),)
        reason = "; ".join(reasons) or "its processes have ended"
        self._ended = reason
        self._logs.say("the standby has ended", "warning", reason=reason)
