"""Identical requests that have one answer, made once (`api_gateway.deduplicate`)."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from contextlib import suppress
from hashlib import blake2b
from typing import Any

from launcher.frontdoor import metrics
from launcher.frontdoor.delivery import Sink
from launcher.frontdoor.upstream import Asked
from server.replay.records import Start

Key = tuple[str, str, bytes]


def share_key(asked: Asked) -> Key | None:
    """Equal for requests that must get the same answer; None if another one may be wanted each time.

    That is: of the same key, to the same route, the same JSON, and either greedy or with a seed of its own.
    """
    try:
        body = json.loads(asked.body)
    except (ValueError, RecursionError):
        return None
    if not isinstance(body, dict) or not _is_deterministic(body):
        return None
    principal = asked.scope["state"].get("principal")
    who = "" if principal is None else principal.id
    if asked.scope["query_string"]:
        return None
    canonical = json.dumps(body, sort_keys=True, separators=(",", ":")).encode()
    return who, asked.scope["path"], blake2b(canonical, digest_size=32).digest()


def _is_deterministic(body: dict[str, Any]) -> bool:
    temperature, seed = body.get("temperature"), body.get("seed")
    greedy = isinstance(temperature, int | float) and temperature == 0
    return greedy or (isinstance(seed, int) and not isinstance(seed, bool))


class _Shared:
    """One answer, kept from its first byte while it is made; a sink."""

    def __init__(self) -> None:
        self.head: Start | None = None
        self.parts: list[bytes] = []
        self.ended = self._accepted = False
        self.readers = 0
        self.task: asyncio.Task[None] | None = None
        self._more = asyncio.Event()

    def accepted(self) -> None:
        self._accepted = True
        self._tell()

    async def start(self, start: Start) -> None:
        self.head = start
        self._tell()

    async def body(self, data: bytes) -> None:
        self.parts.append(data)
        self._tell()

    async def end(self) -> None:
        self.ended = True
        self._tell()

    def _tell(self) -> None:
        more, self._more = self._more, asyncio.Event()
        more.set()

    async def copy_to(self, sink: Sink) -> None:
        """All of it.  Raises what ended it."""
        assert self.task is not None
        told, sent = False, 0
        while True:
            more, ended = self._more, self.ended
            if self._accepted:
                sink.accepted()
            if self.head is not None and not told:
                told = True
                await sink.start(self.head)
            while sent < len(self.parts):
                sent += 1
                await sink.body(self.parts[sent - 1])
            if ended:
                await sink.end()
                return
            if self.task.done() and more is self._more:
                self.task.result()
                raise AssertionError("an answer ends, or fails")
            waiting = asyncio.ensure_future(more.wait())
            try:
                await asyncio.wait({waiting, self.task}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                waiting.cancel()


class Sharing:
    """Answers in the making, by what was asked."""

    def __init__(self) -> None:
        self._answers: dict[Key, _Shared] = {}
        self.coalesced = 0

    async def join(self, key: Key, answer: Callable[[Sink], Awaitable[None]], sink: Sink) -> None:
        """Give `sink` the answer to `key`, made by `answer` unless it is being made already.

        It is given up with the last one who waits for it.
        """
        shared = self._answers.get(key)
        if shared is None:
            shared = self._answers[key] = _Shared()
            shared.task = asyncio.create_task(self._make(key, shared, answer))
        else:
            self.coalesced += 1
            metrics.COALESCED.inc()
        shared.readers += 1
        try:
            await shared.copy_to(sink)
        finally:
            shared.readers -= 1
            if not shared.readers:
                await self._give_up(key, shared)

    async def _make(
        self, key: Key, shared: _Shared, answer: Callable[[Sink], Awaitable[None]]
    ) -> None:
        try:
            await answer(shared)
        finally:
            self._forget(key, shared)

    async def _give_up(self, key: Key, shared: _Shared) -> None:
        self._forget(key, shared)
        assert shared.task is not None
        shared.task.cancel()
        with suppress(asyncio.CancelledError, Exception):  # its readers were told
            await shared.task

    def _forget(self, key: Key, shared: _Shared) -> None:
        if self._answers.get(key) is shared:
            del self._answers[key]
