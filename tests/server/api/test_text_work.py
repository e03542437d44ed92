"""Long texts wait for each other, and short ones for none of them."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import Callable

import pytest

from server.access.account import Account, enter
from server.access.principal import Principal, Role
from server.api.errors import Overloaded
from server.api.text_work import LONG, MOST_OF_ONE, THREADS, TextWork

DEADLINE_S = 60.0


class Stuck:
    """Work that ends when it is told to."""

    def __init__(self) -> None:
        self.begun = 0
        self.go_on = threading.Event()
        self._lock = threading.Lock()

    def __call__(self) -> str:
        with self._lock:
            self.begun += 1
        assert self.go_on.wait(DEADLINE_S)
        return "done"


def task_of(key: str, texts: TextWork, work: Stuck) -> asyncio.Task[str]:
    context = contextvars.copy_context()
    context.run(enter, Account(Principal(key, key, Role.USER)))
    run = texts.run(LONG + 1, work)
    return context.run(asyncio.get_running_loop().create_task, run)


async def until(condition: Callable[[], object]) -> None:
    async def poll() -> None:
        while not condition():
            await asyncio.sleep(0.005)

    await asyncio.wait_for(poll(), DEADLINE_S)


def test_short_texts_do_not_wait_for_long_ones() -> None:
    async def main() -> None:
        texts, work = TextWork(), Stuck()
        long = [task_of("ann", texts, work) for _ in range(MOST_OF_ONE)]
        await until(lambda: work.begun == THREADS)
        short = [texts.run(LONG, len, "text") for _ in range(20)]
        assert await asyncio.wait_for(asyncio.gather(*short), DEADLINE_S) == [4] * 20
        assert work.begun == THREADS
        work.go_on.set()
        assert await asyncio.gather(*long) == ["done"] * MOST_OF_ONE

    asyncio.run(main())


def test_one_key_leaves_places_for_others_and_gets_its_own_back() -> None:
    async def main() -> None:
        texts, work = TextWork(), Stuck()
        ann = [task_of("ann", texts, work) for _ in range(MOST_OF_ONE)]
        await until(lambda: work.begun == THREADS)
        with pytest.raises(Overloaded):
            await task_of("ann", texts, work)
        bob = task_of("bob", texts, work)
        await asyncio.sleep(0)
        assert not bob.done()
        # Who gives up waiting leaves at once; what is at work holds its place.
        for task in ann:
            task.cancel()
        await asyncio.gather(*ann, return_exceptions=True)
        await until(lambda: texts._held["ann"] == THREADS)
        work.go_on.set()
        assert await bob == "done"
        await until(lambda: not texts._held)

    asyncio.run(main())


def test_all_places_together_are_bounded() -> None:
    async def main() -> None:
        texts, work = TextWork(), Stuck()
        tasks = [task_of(key, texts, work) for key in "ab" for _ in range(MOST_OF_ONE)]
        await until(lambda: work.begun == THREADS)
        with pytest.raises(Overloaded, match="long texts"):
            await task_of("c", texts, work)
        work.go_on.set()
        await asyncio.gather(*tasks)

    asyncio.run(main())
