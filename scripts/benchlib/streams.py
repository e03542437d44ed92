"""Streams that run on while something else is measured."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from itertools import pairwise
from types import TracebackType

from benchlib.client import REQUEST_TIMEOUT, Client, Outcome, Request
from benchlib.servers import ServerFailed


class Streams:
    """Requests that run together until the context ends, which closes their connections."""

    def __init__(self, client: Client, requests: Sequence[Request]) -> None:
        self._client, self._requests = client, requests
        self._changed = asyncio.Event()
        self._tasks: list[asyncio.Task[Outcome]] = []
        self._outcomes: dict[int, Outcome] = {}

    async def __aenter__(self) -> Streams:
        for index, request in enumerate(self._requests):
            task = asyncio.create_task(self._run(index, request))
            task.add_done_callback(lambda task: self._changed.set())
            self._tasks.append(task)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def outcomes(self) -> list[Outcome]:
        """Of the streams whose text has begun."""
        return list(self._outcomes.values())

    async def until(self, reached: Callable[[Outcome], bool]) -> None:
        """Wait until every stream has come so far.

        Raises ServerFailed if one of them ends, or nothing happens for long.
        """
        while len(self._outcomes) < len(self._tasks) or not all(map(reached, self.outcomes)):
            for task in self._tasks:
                if task.done():
                    raise ServerFailed(
                        f"a stream ended early: {task.result().error or 'too short'}"
                    )
            self._changed.clear()
            try:
                await asyncio.wait_for(self._changed.wait(), REQUEST_TIMEOUT)
            except asyncio.TimeoutError:
                raise ServerFailed(f"no stream moved for {REQUEST_TIMEOUT:g} s") from None

    async def _run(self, index: int, request: Request) -> Outcome:
        def note(outcome: Outcome) -> None:
            self._outcomes[index] = outcome
            self._changed.set()

        return await self._client.run(request, on_text=note)


def gaps_around(
    arrivals: Sequence[float], start: float, end: float
) -> tuple[list[float], list[float]]:
    """Gaps between arrivals that ended before `start`, and those that share time with `start` to `end`."""
    pairs = list(pairwise(arrivals))
    before = [b - a for a, b in pairs if b <= start]
    during = [b - a for a, b in pairs if b > start and a < end]
    return before, during
