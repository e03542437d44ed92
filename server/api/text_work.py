"""Threads for what takes long with long texts: rendering them, and making tokens of them.

Short texts have the threads of the event loop.  Long ones have a few of their own, where they wait for each
other and for nobody else, and one user's do not take all places there.
"""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import ParamSpec, TypeVar

from server.access import account
from server.api.errors import Overloaded

P = ParamSpec("P")
T = TypeVar("T")

LONG = 64 << 10  # bytes or characters
THREADS = 2  # for long texts
MOST = 16  # long texts at work or waiting
MOST_OF_ONE = 8  # of one key


class TextWork:
    """Of one server."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(THREADS, "long text")
        self._held: Counter[str] = Counter()  # places, by tenant
        self._lock = threading.Lock()

    async def run(self, size: int, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """The result of `work`, done in a thread; `size`: of the text it is about.

        Raises Overloaded.  A thread goes on with what nobody waits for any more, and holds a place until then.
        """
        if size <= LONG:
            return await asyncio.to_thread(work, *args, **kwargs)
        tenant = account.current().tenant
        self._take(tenant)
        call = partial(contextvars.copy_context().run, work, *args, **kwargs)
        done: Future[T] = self._threads.submit(call)
        done.add_done_callback(lambda _: self._give_back(tenant))
        return await asyncio.wrap_future(done)

    def _take(self, tenant: str) -> None:
        with self._lock:
            if self._held.total() >= MOST or self._held[tenant] >= MOST_OF_ONE:
                raise Overloaded("Too many long texts are waiting to be read.")
            self._held[tenant] += 1

    def _give_back(self, tenant: str) -> None:
        with self._lock:
            self._held[tenant] -= 1
            self._held += Counter()  # forgets who has none
