"""Load that never stops, with every answer compared to the known one."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import httpx

from chaoslib.answers import Answer, Task, differences
from chaoslib.client import ask

RETRIES = 100  # of a request that was refused with Retry-After


@dataclass(frozen=True)
class Wrong:
    """An answer that is not the known one."""

    task: str
    what: tuple[str, ...]


@dataclass
class Load:
    """Counts of what was asked, and what was wrong."""

    http: httpx.AsyncClient
    finished: int = 0
    refused: int = 0  # times that a request was sent again after 503
    wrong: list[Wrong] = field(default_factory=list)
    arrivals: list[float] = field(default_factory=list)  # of text in any stream, of time.monotonic
    _stopping: bool = False

    async def once(self, tasks: Sequence[Task]) -> dict[str, Answer]:
        """All at the same time; their answers by name, none of them compared."""
        answers = await asyncio.gather(*(self._ask(task) for task in tasks))
        return {task.name: answer for task, answer in zip(tasks, answers, strict=True)}

    async def compare(self, tasks: Sequence[Task], known: Mapping[str, Answer]) -> None:
        """All at the same time, once."""
        answers = await self.once(tasks)
        for name, answer in answers.items():
            self._judge(name, known[name], answer)

    async def press(self, tasks: Sequence[Task], known: Mapping[str, Answer]) -> None:
        """All at the same time, each again and again until `stop`."""
        self._stopping = False
        await asyncio.gather(*(self._repeat(task, known[task.name]) for task in tasks))

    def stop(self) -> None:
        """Let what has begun come to its end, and begin nothing more."""
        self._stopping = True

    async def _repeat(self, task: Task, known: Answer) -> None:
        while not self._stopping:
            self._judge(task.name, known, await self._ask(task))

    def _judge(self, name: str, known: Answer, answer: Answer) -> None:
        self.finished += 1
        found = differences(known, answer)
        if found:
            self.wrong.append(Wrong(name, tuple(found)))

    async def _ask(self, task: Task) -> Answer:
        for _ in range(RETRIES):
            answer = await ask(self.http, task, self._note)
            if answer.retry_after is None:
                break
            self.refused += 1
            await asyncio.sleep(answer.retry_after)
        return answer

    def _note(self) -> None:
        self.arrivals.append(time.monotonic())


def silence_after(arrivals: Sequence[float], fault: float, until: float) -> float | None:
    """Seconds from a fault to the first text after it was felt: to the end of the longest pause that follows.

    None if nothing came after the fault. The pause may begin before the fault, but not end before it.
    """
    near = [time for time in arrivals if time <= until]
    pauses = [(b - max(a, fault), b) for a, b in pairwise(near) if b > fault]
    return max(pauses)[1] - fault if pauses else None
