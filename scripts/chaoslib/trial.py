"""Faults under load, one after the other, and what became of each."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import httpx

from chaoslib.answers import Answer, Task
from chaoslib.cluster import RECOVERY_DEADLINE, Cluster, role
from chaoslib.faults import Fault, choose_fault, kill_rank
from chaoslib.load import Load, silence_after

FLOWING = 3  # pieces of text for each request that show that all of them run
FEW_FILES = (
    8  # descriptors that a launcher may have more than before, for connections just being closed
)
IDLE_DEADLINE = 30.0  # seconds until nothing of the requests is left


@dataclass
class Event:
    """One fault, when it was done by two clocks (of time.monotonic and since 1970), and how it was felt."""

    kind: str
    what: str
    at: float
    wall: float
    next_token_s: float | None = None
    layers: dict[str, tuple[int, int]] = field(default_factory=dict)  # of each node, afterwards


@dataclass
class Result:
    """All that is reported of one trial."""

    events: list[Event] = field(default_factory=list)
    finished: int = 0
    refused: int = 0
    wrong: list[dict[str, Any]] = field(default_factory=list)
    leaks: list[str] = field(default_factory=list)
    recoveries: list[dict[str, Any]] = field(default_factory=list)  # as the launcher tells them

    @property
    def is_good(self) -> bool:
        return not self.wrong and not self.leaks


class Trial:
    """Runs inside the event loop of the load; what asks the cluster waits in threads."""

    def __init__(
        self, cluster: Cluster, tasks: Sequence[Task], known: Mapping[str, Answer]
    ) -> None:
        self._cluster, self._tasks, self._known = cluster, tasks, known
        self.result = Result()  # so far

    async def turns(self, ranks: Sequence[int] | None = None) -> Result:
        """Each rank, or each of `ranks`, is killed once while all requests run; all of those have to finish."""
        result = self.result
        await self._settled()
        before = await asyncio.to_thread(self.belongings)
        for rank in await self._turns_of(ranks):
            await self._ready()
            await asyncio.to_thread(self._cluster.make_whole)
            await self._settled()
            async with connections(self._cluster.url) as http:
                load = Load(http)
                running = asyncio.create_task(load.compare(self._tasks, self._known))
                try:
                    await self._flowing(load, running)
                    if running.done():
                        raise self._cluster.failed("the requests are too short to be disturbed")
                    event = await self._do(kill_rank(self._cluster, rank))
                    await running
                    await self._note(event, load, result)
                finally:
                    running.cancel()
                    self._take(load, result)
        await self.check_leaks(before, result)
        return result

    async def faults(self, kinds: Sequence[str], choose: random.Random) -> Result:
        """Faults of these kinds in a row, while requests follow each other without end."""
        chosen = (lambda kind=kind: choose_fault(self._cluster, kind, choose) for kind in kinds)
        return await self.each(chosen, settled=False)

    async def each(self, faults: Iterable[Callable[[], Fault]], settled: bool = True) -> Result:
        """These in a row, likewise; `settled`: those who are to take over are there before each of them."""
        async with self._pressed() as (load, pressing):
            for make in faults:
                await self._ready()
                await asyncio.to_thread(self._cluster.make_whole)
                if settled:
                    await self._settled()
                await self._flowing(load, pressing)
                fault = await asyncio.to_thread(make)
                event = await self._do(fault)
                await self._flowing(load, pressing)
                await asyncio.to_thread(fault.undo)
                await self._note(event, load, self.result)
        return self.result

    async def meanwhile(self, act: Callable[[], None]) -> Result:
        """`act` in a thread, while requests follow each other without end, before it and afterwards."""
        async with self._pressed() as (load, pressing):
            await self._flowing(load, pressing)
            await asyncio.to_thread(act)
            await self._flowing(load, pressing)
        return self.result

    @asynccontextmanager
    async def _pressed(self) -> AsyncIterator[tuple[Load, asyncio.Task[None]]]:
        """While requests follow each other without end; then it is looked at what is left."""
        await self._settled()
        before = await asyncio.to_thread(self.belongings)
        async with connections(self._cluster.url) as http:
            load = Load(http)
            pressing = asyncio.create_task(load.press(self._tasks, self._known))
            try:
                yield load, pressing
                load.stop()
                await pressing
            finally:
                pressing.cancel()
                self._take(load, self.result)
        await self.check_leaks(before, self.result)

    async def _turns_of(self, ranks: Sequence[int] | None) -> Sequence[int]:
        """Negative ones count from the last."""
        size = len(await asyncio.to_thread(self._cluster.ranks))
        return range(size) if ranks is None else [rank % size for rank in ranks]

    # a fault

    async def _do(self, fault: Fault) -> Event:
        """Do it, and wait until the launcher has got over it."""
        before = self._cluster.recoveries()
        event = Event(fault.kind, fault.what, time.monotonic(), time.time())
        await asyncio.to_thread(fault.do)
        await asyncio.to_thread(
            self._cluster.wait,
            lambda: self._cluster.recoveries() > before,
            f"not recovered from {fault.what}",
            RECOVERY_DEADLINE,
        )
        return event

    async def _note(self, event: Event, load: Load, result: Result) -> None:
        event.next_token_s = silence_after(load.arrivals, event.at, time.monotonic())
        event.layers = await asyncio.to_thread(self._cluster.layers)
        result.events.append(event)
        # Now, as the launcher forgets old ones.
        status = await asyncio.to_thread(self._cluster.status)
        known = {recovery["epoch"] for recovery in result.recoveries}
        result.recoveries += [r for r in status["recoveries"] if r["epoch"] not in known]
        felt = "never" if event.next_token_s is None else f"after {event.next_token_s:.2f} s"
        print(f"{event.what}: next token {felt}, then {len(event.layers)} nodes", flush=True)

    async def _flowing(self, load: Load, running: asyncio.Task[None]) -> None:
        """Wait until so much text has come from now on that most requests must have got some."""
        wanted = len(load.arrivals) + FLOWING * len(self._tasks)
        end = time.monotonic() + RECOVERY_DEADLINE
        while len(load.arrivals) < wanted and not running.done():
            if time.monotonic() > end:
                raise self._cluster.failed(f"no text came for {RECOVERY_DEADLINE:g} s")
            await asyncio.sleep(0.02)

    async def _ready(self) -> None:
        await asyncio.to_thread(
            self._cluster.wait, self._cluster.is_ready, "not ready again", RECOVERY_DEADLINE
        )

    async def _settled(self) -> None:
        """Wait for those who are to take over, else a rank dies while they are still on their way."""
        await asyncio.to_thread(
            self._cluster.wait, self._cluster.is_settled, "nobody waits", RECOVERY_DEADLINE
        )

    # leaks

    def belongings(self) -> tuple[list[str], int]:
        """The roles of all processes, and how many files the launcher has open."""
        roles = sorted(role(process) for process in self._cluster.processes())
        return roles, self._cluster.launcher.num_fds()

    async def check_leaks(self, before: tuple[list[str], int], result: Result) -> None:
        await self._ready()
        await self._settled()
        end = time.monotonic() + IDLE_DEADLINE
        while leaks := await asyncio.to_thread(self._leaks, before):
            if time.monotonic() > end:
                result.leaks += leaks
                return
            await asyncio.sleep(0.5)

    def _leaks(self, before: tuple[list[str], int]) -> list[str]:
        roles, files = self.belongings()
        found = []
        if sequences := self._cluster.sequences():
            found.append(f"{sequences} sequences are held though no request runs")
        if files > before[1] + FEW_FILES:
            found.append(f"the launcher has {files} open files, and had {before[1]}")
        if any(roles.count(name) > before[0].count(name) for name in roles):
            found.append(f"processes are {roles}, and were {before[0]}")
        return found

    def _take(self, load: Load, result: Result) -> None:
        result.finished += load.finished
        result.refused += load.refused
        result.wrong += [asdict(wrong) for wrong in load.wrong]


def connections(url: str) -> httpx.AsyncClient:
    """One connection for each request, as clients of their own have."""
    return httpx.AsyncClient(
        base_url=url, limits=httpx.Limits(max_connections=None, max_keepalive_connections=0)
    )
