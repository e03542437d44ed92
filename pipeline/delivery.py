"""Requests at work, and what is on its way to those who wait for them."""

from __future__ import annotations

import asyncio
import contextlib
import time
from dataclasses import dataclass, field

import structlog

from pipeline.errors import BrokenOutput, ConstraintRefused, RequestRejected
from pipeline.frames import Admission
from pipeline.request import GenerationRequest, TokenEvent
from pipeline.steps import Admitted

log = structlog.get_logger()

Outcome = TokenEvent | Exception


@dataclass
class RunningRequest:
    """One request inside the engine."""

    sequence: int
    request: GenerationRequest
    loop: asyncio.AbstractEventLoop
    queue: asyncio.Queue[Outcome]
    emitted: int = 0  # tokens delivered, those before a resume included
    tokens: tuple[int, ...] = ()  # what is prefilled
    made: list[int] = field(default_factory=list)  # since it was last put in the queue
    cached: int = 0  # tokens of the prompt that were not prefilled
    submitted: float = field(default_factory=time.monotonic)
    queued: float | None = None  # seconds before it had a place on the stages

    @property
    def next_token(self) -> int:
        """What the next decode step feeds."""
        return self.made[-1] if self.made else self.tokens[-1]

    @property
    def to_make(self) -> int:
        """Tokens still allowed."""
        return self.request.max_tokens - self.emitted

    @property
    def started(self) -> bool:
        """Whether anything was delivered since it was submitted."""
        return self.emitted > len(self.request.emitted)

    def admission(self, admitted: Admitted) -> Admission:
        """How the stages are told of it, at the moment when it gets its place."""
        request, length = self.request, admitted.length
        if not self.started:
            self.cached = min(length, len(request.prompt))
            self.queued = time.monotonic() - self.submitted
        needs_prompt = request.params.repetition_penalty != 1.0
        return Admission(
            admitted.sequence,
            request.params,
            request.prompt if needs_prompt else (),
            self.known,
            admitted.source,
            length,
            request.origin,
            request.trace,
        )

    def given_up(self, refused: str | None) -> RequestRejected:
        """What it is told when its output can't go on; `refused`: why its constraint can't."""
        origin = self.request.origin
        if refused is None:
            log.error("the logits can't be sampled", request_id=origin, tokens=self.emitted)
            return BrokenOutput("The model's output for this request is not a number.")
        # Not why: that quotes the grammar and the output.
        log.warning("a constraint can't go on", request_id=origin, tokens=self.emitted)
        return ConstraintRefused(f"The output can't follow the constraint: {refused}.")

    @property
    def known(self) -> tuple[int, ...]:
        """Output that is prefilled: from before a resume, or before it was preempted."""
        return self.tokens[len(self.request.prompt) :]


class Outbox:
    """Collects outcomes, and delivers them with one call into each event loop.  For one thread at a time."""

    def __init__(self) -> None:
        self._waiting: dict[
            asyncio.AbstractEventLoop, list[tuple[asyncio.Queue[Outcome], Outcome]]
        ] = {}

    def post(self, request: RunningRequest, outcome: Outcome) -> None:
        """Deliver with the next `flush`."""
        self._waiting.setdefault(request.loop, []).append((request.queue, outcome))

    def flush(self) -> None:
        """Deliver what was posted."""
        waiting, self._waiting = self._waiting, {}
        for loop, deliveries in waiting.items():
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
                loop.call_soon_threadsafe(_put_all, deliveries)


def _put_all(deliveries: list[tuple[asyncio.Queue[Outcome], Outcome]]) -> None:
    for queue, outcome in deliveries:
        queue.put_nowait(outcome)
