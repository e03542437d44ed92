"""Every request that makes tokens: asked of rank 0, and again of the next one, until its answer is whole."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice, takewhile
from typing import Any, cast

import httpx
import structlog
from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from launcher.door import LeaderAddress
from launcher.frontdoor import metrics
from launcher.frontdoor.delivery import Delivery, wants_stream
from launcher.frontdoor.exchange import BUSY, Diverged, Exchange, Interrupted, Out
from launcher.frontdoor.leadership import Backoff, Leadership
from launcher.frontdoor.responses import KeptResponses
from launcher.frontdoor.suspects import Case, Verdict
from launcher.frontdoor.turns import Turns
from launcher.frontdoor.upstream import Answer, Asked, Upstream
from server.access.errors import Refusal
from server.api.body import BodyReader
from server.api.disconnect import unless_disconnected
from server.api.errors import SWITCH_HEADER, ApiError, NotReady, Overloaded
from server.replay.records import Context, JournalError, Start

log = structlog.get_logger(__name__)


class FaultsAgain(ApiError):
    """The engine failed under this request again and again."""

    may_quote = False
    status = 500
    code = "internal_error"


class CutOff(Exception):
    """Rank 0 ended the response before it was whole, as for a client that does not read."""


@dataclass(frozen=True)
class GateLimits:
    """Bounds of the gate; seconds."""

    timeout: float  # for a leader, each time that there is none
    waiting: int  # new requests that wait for a leader
    first_pause: float
    longest_pause: float
    keep_alive: float = 15.0


class Gate:
    """An ASGI application; below it must be the middlewares of request ids and access."""

    def __init__(
        self,
        leadership: Leadership,
        upstream: Upstream,
        bodies: BodyReader,
        limits: GateLimits,
        switch_model: Callable[[str], None] = lambda model: None,
    ) -> None:
        """`switch_model` is called with the model that a request wants."""
        self.leadership, self._upstream, self._bodies = leadership, upstream, bodies
        self.limits, self._switch_model = limits, switch_model
        self.responses = KeptResponses()
        self._turns = Turns(leadership)
        self.draining = False
        self.in_flight = self.waiting = self.resumed = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        delivery = Delivery(scope, send, self.limits.keep_alive)
        try:
            if self.draining:
                raise NotReady("The server takes no new requests: it is being drained.")
            body = await self._bodies.read(Headers(scope=scope), receive)
            asked = Asked(scope, body, self.responses.wanted(scope, body))
            with self._counted():
                await unless_disconnected(receive, self._serve(asked, delivery))
        except (ApiError, Refusal) as error:
            await delivery.fail(error, receive)
        except (ClientDisconnect, CutOff):
            return  # what is not whole closes the connection

    async def _serve(self, asked: Asked, delivery: Delivery) -> None:
        delivery.streams = wants_stream(asked.body)
        async with delivery.kept_alive():
            await self._answer(asked, delivery)

    async def _answer(self, asked: Asked, delivery: Delivery) -> None:
        """All of it.  Raises NotReady, FaultsAgain, CutOff, and what refuses the request."""
        case, exchange = Case(), Exchange(Context())
        try:
            await self._attempts(asked, exchange, case, delivery)
        finally:
            self._turns.forget(case)
        # The engine has done its part: nobody waits for a client that reads slowly.
        await self._deliver(exchange, delivery)

    async def _attempts(
        self, asked: Asked, exchange: Exchange, case: Case, delivery: Delivery
    ) -> None:
        """Attempt after attempt, until all of the answer is here."""
        backoff = Backoff(self.limits.first_pause, self.limits.longest_pause)
        silent_since: float | None = None  # no attempt got anywhere
        loop = asyncio.get_running_loop()
        while True:
            left = self.limits.timeout
            if silent_since is not None:
                left -= loop.time() - silent_since
            leader = await self._leader(left, exchange)
            if not await self._turn(leader, exchange, case):
                silent_since = None  # the one that was tried has broken that one
                continue
            if case.is_suspect:
                log.warning(
                    "a request is tried while others wait",
                    request_id=asked.scope["state"]["request_id"],
                    faults=case.faults,
                )
            exchange.begin()
            before = exchange.tokens, exchange.delivered
            try:
                attempt = self._attempt(leader, asked, exchange, case, delivery)
                await self._while_it_leads(leader, attempt)
            except Interrupted as interruption:
                if not exchange.ended:
                    log.warning(
                        "a request is interrupted",
                        request_id=asked.scope["state"]["request_id"],
                        reason=str(interruption),
                        tokens=exchange.tokens,
                    )
                    self._judge(case, interruption)
                    if case.trials.pause:
                        log.warning(
                            "the engine is watched without a request",
                            request_id=asked.scope["state"]["request_id"],
                            faults=case.trials.faults,
                            seconds=round(case.trials.pause, 1),
                        )
            if exchange.ended:
                return
            if (exchange.tokens, exchange.delivered) != before:
                silent_since = None
                backoff.reset()
            silent_since = loop.time() if silent_since is None else silent_since
            await self.leadership.pause(backoff.pause())

    async def _while_it_leads(
        self, leader: LeaderAddress, attempt: Coroutine[Any, Any, None]
    ) -> None:
        """Run `attempt` to its end.  Raises Interrupted when `leader` is told to be gone: a host without power
        closes no connection.
        """
        attempting = asyncio.create_task(attempt)
        lost = asyncio.create_task(self.leadership.lost(leader))
        try:
            await asyncio.wait({attempting, lost}, return_when=asyncio.FIRST_COMPLETED)
            if not attempting.done():
                raise Interrupted("its rank 0 leads no more", fault=True)
            attempting.result()
        finally:
            attempting.cancel()
            lost.cancel()
            await asyncio.gather(attempting, lost, return_exceptions=True)

    async def _attempt(
        self,
        leader: LeaderAddress,
        asked: Asked,
        exchange: Exchange,
        case: Case,
        delivery: Delivery,
    ) -> None:
        """One attempt, to the whole answer.  Raises Interrupted."""
        try:
            async with self._upstream.attempt(leader, asked, exchange) as answer:
                if not answer.journaled:
                    await self._pass_on(answer, exchange)
                else:
                    delivery.accepted()
                    await self._take_records(answer, asked, exchange, case, delivery)
        except httpx.TransportError as error:
            reason = f"the connection to rank 0 was lost ({type(error).__name__})"
            raise Interrupted(reason, fault=True) from error
        except (Diverged, JournalError) as error:
            metrics.ABANDONED.labels("diverged").inc()
            request_id = asked.scope["state"]["request_id"]
            log.error("a response can't go on", request_id=request_id, reason=str(error))
            raise FaultsAgain(
                f"The answer could not be continued after a failure (request id {request_id})."
            ) from error

    async def _take_records(
        self,
        answer: Answer,
        asked: Asked,
        exchange: Exchange,
        case: Case,
        delivery: Delivery,
    ) -> None:
        resuming = exchange.attempts > 1 and exchange.resumed
        tokens = exchange.tokens
        async for records in answer.batches():
            try:
                for record in records:
                    exchange.unsent.extend(
                        self._headed(out, answer) for out in exchange.take(record)
                    )
                    self._keep(asked, exchange)
            finally:
                # Before anything is sent: with the last byte the client may go, and this task with it.
                if exchange.tokens > tokens:
                    self._turns.got_token(case)
                if resuming and exchange.answered:
                    resuming = False
                    self.resumed += 1
                    metrics.RESUMED.inc()
                # Others wait for one that is tried to its end, so that one does not wait for its client.
                if not (exchange.ended or case.for_good):
                    await self._deliver(exchange, delivery)
            if exchange.ended:
                return
        raise CutOff

    def _keep(self, asked: Asked, exchange: Exchange) -> None:
        """Before the end of the response is told: its client may go on from it at once."""
        kept, exchange.kept = exchange.kept, None
        if kept is not None:
            self.responses.keep(kept, asked.scope)

    async def _deliver(self, exchange: Exchange, delivery: Delivery) -> None:
        """Send what is due.

        A leader may be lost while a slow client holds this up, so what is not sent yet stays due.
        """
        unsent = exchange.unsent
        while unsent:
            out = unsent[0]
            if isinstance(out, bytes):
                count = sum(1 for _ in takewhile(lambda each: isinstance(each, bytes), unsent))
                await delivery.body(b"".join(islice(cast("Iterable[bytes]", unsent), count)))
                for _ in range(count):
                    unsent.popleft()
                continue
            if isinstance(out, Start):
                await delivery.start(out)
            else:
                await delivery.end()
            unsent.popleft()

    async def _pass_on(self, answer: Answer, exchange: Exchange) -> None:
        """An answer of what stands before the API at rank 0: who may not come in, or asks too much."""
        status = answer.plain.status
        body = await answer.body()
        if exchange.resumed and status in BUSY:
            raise Interrupted(f"rank 0 says {status}", fault=False)
        if exchange.start is not None:  # of another answer, which this is no part of
            metrics.ABANDONED.labels("refused").inc()
            raise FaultsAgain(
                f"The answer could not be continued after a failure: rank 0 refuses it with {status}."
            )
        exchange.pass_on(answer.plain, body)

    def _headed(self, out: Out, answer: Answer) -> Out:
        """A head gets what `answer` says of the limits."""
        if not isinstance(out, Start):
            return out
        head = self._switched(out)
        return Start(head.status, head.headers + answer.limits)

    def _switched(self, start: Start) -> Start:
        """`start`, and the supervisor told if it says that another model is wanted."""
        name = SWITCH_HEADER.encode()
        for header, model in start.headers:
            if header == name:
                self._switch_model(model.decode())
        return Start(start.status, [pair for pair in start.headers if pair[0] != name])

    async def _leader(self, seconds: float, exchange: Exchange) -> LeaderAddress:
        """Who leads.  Raises NotReady, and Overloaded when too many new requests wait already."""
        if self.leadership.address is not None and seconds > 0:
            return self.leadership.address
        with self._waits(exchange):
            return await self._in_time(seconds)

    async def _turn(self, leader: LeaderAddress, exchange: Exchange, case: Case) -> bool:
        """Wait while others are tried; False once somebody else leads.

        Raises NotReady and Overloaded for new requests only: those that were interrupted have a right to go on,
        and who is tried gets its token, or is given up.
        """
        if self._turns.is_due(case, leader):
            return await self._turns.wait(case, leader)
        new = not exchange.resumed and not case.faults
        with self._waits(exchange):
            try:
                due = self._turns.wait(case, leader)
                return await asyncio.wait_for(due, self.limits.timeout if new else None)
            except asyncio.TimeoutError:
                reason = "it is being found out which request breaks the engine"
                raise NotReady(f"Nothing can be served: {reason}.") from None

    @contextmanager
    def _waits(self, exchange: Exchange) -> Iterator[None]:
        """Raises Overloaded for one request too many that is new."""
        if not exchange.resumed and self.waiting >= self.limits.waiting:
            raise Overloaded(f"{self.waiting} requests wait already: {self.leadership.reason}.")
        self._wait(1)
        try:
            yield
        except NotReady:
            metrics.ABANDONED.labels("no_leader").inc()
            raise
        finally:
            self._wait(-1)

    async def _in_time(self, seconds: float) -> LeaderAddress:
        if seconds <= 0:
            raise NotReady(f"Nothing can be served: {self.leadership.reason}.")
        return await self.leadership.wait(seconds)

    def _judge(self, case: Case, interruption: Interrupted) -> None:
        """Raises FaultsAgain for a request that is found to be what breaks the engine."""
        verdict = self._turns.end(case, fault=interruption.fault)
        if verdict is Verdict.GOES_ON:
            return
        metrics.ABANDONED.labels("faults").inc()
        if verdict is Verdict.FRUITLESS:
            raise FaultsAgain(
                f"The engine failed {case.fruitless} times under this request without a token."
            )
        raise FaultsAgain(f"The engine failed {case.faults} times under this request.")

    @contextmanager
    def _counted(self) -> Iterator[None]:
        self._fly(1)
        try:
            yield
        finally:
            self._fly(-1)

    def _fly(self, change: int) -> None:
        self.in_flight += change
        metrics.IN_FLIGHT.set(self.in_flight)

    def _wait(self, change: int) -> None:
        self.waiting += change
        metrics.WAITING.set(self.waiting)
