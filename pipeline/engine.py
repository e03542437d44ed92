"""The engine on rank 0: requests in, tokens out.  Each turn chooses a step, runs it, absorbs results.

The loop runs in a thread of its own.  `generate`, `stats`, `configure` and `stop` may be called from others.
"""

from __future__ import annotations

import asyncio
import contextlib
import select
import socket
import threading
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable
from functools import partial

import structlog

from pipeline.delivery import Outbox, Outcome, RunningRequest
from pipeline.engine_stats import EngineStats, look
from pipeline.errors import (
    EngineFault,
    EngineStopped,
    FrameError,
    LinkTimeout,
    RequestCancelled,
    RequestRejected,
)
from pipeline.frames import Admission, Decode, Prefill, Result, Step
from pipeline.link import Connection, Links
from pipeline.request import FinishReason, GenerationRequest, SamplingParams, TokenEvent
from pipeline.scheduler import Scheduler
from pipeline.steps import Admitted, DecodeBatch, StepPlan
from pipeline.worker import Worker

log = structlog.get_logger()


class Engine:
    """See the module's text.  Implements pipeline.request.Generator."""

    def __init__(
        self, scheduler: Scheduler, worker: Worker, links: Links | None, step_timeout: float
    ) -> None:
        """`step_timeout`: seconds that each stage may take for a step."""
        self._scheduler, self._worker, self._links = scheduler, worker, links
        self._timeout = step_timeout * scheduler.limits.stages * scheduler.limits.loops
        self._commands: deque[Callable[[], None]] = deque()
        self._lock = threading.Lock()
        self._awake, self._wakeup = socket.socketpair()
        self._awake.setblocking(False)
        self._wakeup.setblocking(False)
        self._requests: dict[int, RunningRequest] = {}
        self._stopping = False
        self._closed: Callable[[], Exception] | None = None  # what every later request is told
        self._last_progress = time.monotonic()
        self._busy_since: float | None = None
        self._generated = self._prompted = 0
        self._outbox = Outbox()
        self._latest: StepPlan | None = None

    # any thread

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[TokenEvent, None]:
        """See pipeline.request.Generator.

        Raises ValueError for a request without a prompt token, or without a token left to make.
        """
        if not request.prompt or len(request.emitted) >= request.max_tokens:
            raise ValueError(f"request {request.id} has no prompt, or no token left to make")
        queue: asyncio.Queue[Outcome] = asyncio.Queue()
        loop = asyncio.get_running_loop()
        running: list[RunningRequest] = []
        self._command(lambda: running.append(self._submit(request, loop, queue)))
        try:
            while True:
                outcome = await queue.get()
                if isinstance(outcome, Exception):
                    raise outcome
                yield outcome
                if outcome.finish is not None:
                    return
        finally:
            self._command(lambda: self._cancel(running))

    def stats(self) -> EngineStats:
        """A momentary view; the numbers may be one step apart."""
        worker = self._worker.stats
        return look(self._scheduler, worker, self._busy_since, self._generated, self._prompted)

    @property
    def max_model_len(self) -> int | None:
        """Tokens, prompt and output, of the longest request that can be served; None: no limit is known."""
        limits = self._scheduler.limits
        return min((n for n in (limits.context, limits.kv_tokens) if n is not None), default=None)

    def configure(self, change: Callable[[Scheduler], None]) -> None:
        """Let the engine thread change the scheduler between two steps."""
        self._command(lambda: change(self._scheduler))

    def cancel(self, request: str) -> None:
        """End a request by its id; who waits for it gets RequestCancelled.  Unknown ids are ignored."""
        self._command(lambda: self._cancel_by_id(request))

    def admitted(self) -> frozenset[str]:
        """Ids of requests that have a place on the stages.  Any thread may ask."""
        requests = list(self._requests.values())
        return frozenset(r.request.id for r in requests if r.queued is not None)

    def stop(self) -> None:
        """End the loop between two steps; running requests get EngineStopped."""
        self._command(self._begin_stop)

    # the engine thread

    def run(self) -> None:
        """The loop.  Returns after `stop`; raises what breaks the ring or this stage.

        Either way everybody who waits, or comes later, is told.
        """
        try:
            while True:
                self._take_commands()
                if self._stopping:
                    break
                plan = self._choose()
                if plan is not None:
                    self._start(plan)
                    self._take_arrived()
                elif not self._take_arrived():
                    self._foresee()
                    self._wait()
        except BaseException as error:
            self._close(partial(EngineFault, f"the engine failed: {error}"))
            raise
        self._close(partial(EngineStopped, "the server is stopping"))
        self._worker.goodbye()

    def _close(self, outcome: Callable[[], Exception]) -> None:
        """`outcome`: a new one for each request; one that all raise would gather all their tracebacks."""
        # To the end under the lock: from then on callers of other threads run their commands themselves.
        with self._lock:
            self._closed = outcome
            while self._commands:
                self._commands.popleft()()
            for request in self._requests.values():
                self._outbox.post(request, outcome())
            self._requests.clear()
            self._outbox.flush()

    def _choose(self) -> StepPlan | None:
        timeline = self._worker.timeline
        if timeline is None:
            return self._scheduler.choose()
        began = time.monotonic()
        plan = self._scheduler.choose()
        if plan is not None:
            timeline.add("choose", began, plan.id)
        return plan

    def _start(self, plan: StepPlan) -> None:
        if not self._scheduler.in_flight > 1:
            self._last_progress = time.monotonic()
        self._latest = plan
        result = self._worker.run(self._step(plan))
        if result is not None:
            self._absorb(result)

    def _foresee(self) -> None:
        """If the next step is likely to be the last one again, with new tokens, let it be prepared."""
        scheduler, plan = self._scheduler, self._latest
        if plan is None or not isinstance(plan.work, DecodeBatch):
            return
        everybody = scheduler.running == len(plan.work.sequences) and not scheduler.waiting
        if everybody and scheduler.in_flight == 1:
            self._worker.foresee(plan.id + 1, plan.work)

    def _step(self, plan: StepPlan) -> Step:
        return Step(
            plan.id,
            admitted=tuple(self._admission(admitted) for admitted in plan.admitted),
            retained=plan.retained,
            released=plan.released,
            work=self._work(plan),
        )

    def _admission(self, admitted: Admitted) -> Admission:
        running = self._requests.get(admitted.sequence)
        if running is None:  # a snapshot
            return Admission(
                admitted.sequence, SamplingParams(), source=admitted.source, length=admitted.length
            )
        return running.admission(admitted)

    def _work(self, plan: StepPlan) -> Prefill | Decode | None:
        work = plan.work
        if work is None:
            return None
        if isinstance(work, DecodeBatch):
            tokens = tuple(self._requests[s].next_token for s in work.sequences)
            return Decode(work.group, work.sequences, tokens)
        self._prompted += sum(chunk.tokens for chunk in work.chunks)
        rows = [self._requests[c.sequence].tokens[c.start : c.end] for c in work.chunks]
        return Prefill(work.sequences, tuple(rows))

    def _absorb(self, result: Result) -> None:
        self._last_progress = began = time.monotonic()
        try:
            plan = self._scheduler.absorb(result.step, result.seconds)
        except KeyError:
            raise FrameError(f"a result of step {result.step}, which is not in flight") from None
        ran = self._scheduler.running
        if isinstance(plan.work, DecodeBatch):
            self._take_tokens(plan.work, result)
        if result.memory:
            self._watch_memory(result, ran)
        self._outbox.flush()
        timeline = self._worker.timeline
        if timeline is not None:
            timeline.add("absorb", began, result.step)

    def _take_tokens(self, batch: DecodeBatch, result: Result) -> None:
        if len(result.tokens) != len(batch.sequences):
            raise FrameError(
                f"step {result.step}: {len(result.tokens)} tokens for {batch.sequences}"
            )
        logprobs = result.logprobs or (None,) * len(result.tokens)
        for sequence, token, entry in zip(batch.sequences, result.tokens, logprobs, strict=True):
            request = self._requests.get(sequence)
            if request is None:  # cancelled meanwhile
                continue
            if sequence in result.broken:
                self._give_up(request, result.refused.get(sequence))
            else:
                first = not request.started
                cached, queued = (request.cached, request.queued) if first else (0, None)
                request.emitted += 1
                request.made.append(token)
                finish = self._finish_reason(request, token)
                self._deliver(request, TokenEvent(token, finish, entry, cached, queued))

    def _watch_memory(self, result: Result, ran: int) -> None:
        """Let prefixes and sequences go where a stage uses more than its share."""
        before = self._scheduler.memory.budget
        for sequence in self._scheduler.observe_memory(result.step, result.memory, ran):
            self._preempt(self._requests.pop(sequence))
        budget = self._scheduler.memory.budget
        if budget != before:
            log.warning(
                "a stage uses more than its share of memory"
                if result.memory > 1
                else "there is room in memory again",
                used=round(result.memory, 3),
                kept_prefix_tokens=budget.prefix_tokens,
                running_at_most=budget.running,
            )

    def _preempt(self, request: RunningRequest) -> None:
        """What is in flight for it is dropped and made again: sampling depends on the position only.

        As far as the prefill of a token gives what its decoding gave; in half precision they round differently.
        """
        request.tokens += tuple(request.made)
        request.made.clear()
        request.sequence = self._scheduler.preempt(
            request.sequence, len(request.tokens), request.to_make, request.tokens
        )
        self._requests[request.sequence] = request

    def _give_up(self, request: RunningRequest, refused: str | None) -> None:
        self._outbox.post(request, request.given_up(refused))
        request.tokens, request.made = (), []  # nobody is to start from its caches
        self._forget(request)

    def _finish_reason(self, request: RunningRequest, token: int) -> FinishReason | None:
        if token in request.request.params.end_tokens:
            return "stop"
        return "length" if request.emitted >= request.request.max_tokens else None

    def _deliver(self, request: RunningRequest, event: TokenEvent) -> None:
        self._generated += 1
        self._outbox.post(request, event)
        if event.finish is not None:
            self._forget(request)

    def _take_arrived(self) -> bool:
        """Handle the frames that are here already; True if there were any."""
        if self._links is None:
            return False
        any_frame = False
        while (frame := self._links.inbound.poll()) is not None:
            any_frame = True
            if isinstance(frame, Result):
                self._absorb(frame)
            elif isinstance(frame, Step) and frame.loop > 0:
                if self._worker.run(frame) is not None:
                    raise FrameError(f"step {frame.id} ended on the first of several ranks")
            else:
                raise FrameError(f"{frame!r} arrived where a Result was expected")
        return any_frame

    def _wait(self) -> None:
        """Sleep until a frame or a command comes.

        Raises LinkTimeout when steps are in flight and nothing comes back.
        """
        timeout = None
        if self._scheduler.in_flight:
            timeout = self._last_progress + self._timeout - time.monotonic()
            if timeout <= 0:
                raise LinkTimeout(
                    f"{self._scheduler.in_flight} steps are in flight and none came back"
                    f" for {self._timeout:g} s"
                )
        inbound = self._links.inbound if self._links is not None else None
        sleep = partial(self._sleep, inbound, timeout)
        if inbound is None or timeout is None:
            sleep()
        else:
            inbound.alertness.wait(lambda: bool(self._commands) or inbound.arrived(), sleep)

    def _sleep(self, inbound: Connection | None, timeout: float | None) -> bool:
        sources: list[socket.socket | Connection] = [self._awake]
        sources += [inbound] if inbound is not None else []
        ready = select.select(sources, [], [], timeout)[0]
        if self._awake in ready:
            with contextlib.suppress(BlockingIOError):
                self._awake.recv(4096)
        return bool(ready)

    # commands: run in the engine thread

    def _command(self, command: Callable[[], None]) -> None:
        with self._lock:
            if self._closed is None:
                self._commands.append(command)
            else:  # the engine thread has left: its part is done here, one caller at a time
                command()
                self._outbox.flush()
                return
        self._wake()

    def _wake(self) -> None:
        with contextlib.suppress(BlockingIOError):  # full: it is awake already
            self._wakeup.send(b"\0")

    def _take_commands(self) -> None:
        while self._commands:
            self._commands.popleft()()
        self._outbox.flush()

    def _submit(
        self,
        request: GenerationRequest,
        loop: asyncio.AbstractEventLoop,
        queue: asyncio.Queue[Outcome],
    ) -> RunningRequest:
        tokens = request.prompt + request.emitted
        running = RunningRequest(
            self._scheduler.take_id(), request, loop, queue, len(request.emitted), tokens
        )
        if self._closed is not None:
            self._outbox.post(running, self._closed())
            return running
        try:
            self._scheduler.add(
                running.sequence, len(tokens), running.to_make, tokens, request.tenant
            )
        except RequestRejected as error:
            self._outbox.post(running, error)
        else:
            self._requests[running.sequence] = running
            if self._busy_since is None:
                self._busy_since = time.monotonic()
        return running

    def _cancel(self, submitted: list[RunningRequest]) -> None:
        for request in submitted:
            if request.sequence in self._requests:
                self._forget(request)

    def _cancel_by_id(self, wanted: str) -> None:
        for request in [r for r in self._requests.values() if r.request.id == wanted]:
            self._outbox.post(request, RequestCancelled("The request was cancelled."))
            self._forget(request)

    def _forget(self, request: RunningRequest) -> None:
        del self._requests[request.sequence]
        self._scheduler.finish(request.sequence, request.tokens + tuple(request.made))
        if not self._requests:
            self._busy_since = None

    def _begin_stop(self) -> None:
        self._stopping = True
