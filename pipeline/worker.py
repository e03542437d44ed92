"""One stage at work: applies steps to its part of the model and hands the result on.

The same object serves every rank.  On rank 0 the engine calls `run` for each step that it chooses; on every
other rank `serve` takes the steps from the frame link.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import msgspec
import structlog

from pipeline.building import Builder, Built
from pipeline.errors import EngineFault, FrameError
from pipeline.foresight import Foresight
from pipeline.frames import Decode, Frame, Goodbye, Prefill, Ready, Result, Step
from pipeline.link import Links
from pipeline.observer import StageObserver
from pipeline.parcel import Blank, fits, unwrapped, wrapped
from pipeline.ring import Ring, evaluate
from pipeline.sampler import Sampler
from pipeline.sequences import StageSequences, states
from pipeline.split import (
    ActivationFormat,
    Message,
    Stage,
    TensorSpec,
    flatten,
    pack,
)
from pipeline.steps import DecodeBatch
from pipeline.timeline import Activity, Timeline
from pipeline.worker_stats import WorkerStats

log = structlog.get_logger()

SETTLE_STEPS = 16
"""Decode steps of a group between two evaluations of its whole cache state.  What the output does not
depend on is lazy and would grow a graph without end."""

CLEAR_STEPS = 256
"""Steps between two releases of MLX's free buffers, which joins and leaves leave behind in odd sizes."""


@dataclass(frozen=True)
class _Expected:
    """Tensors of the previous stage that a graph is built on before they are there."""

    arrays: list[mx.array]
    blank: Blank | None = None  # in which they will be written; None: the ring brings them


class Worker:
    """Runs the steps of one stage.  All methods belong to the engine thread.

    Closing the links, from any thread, ends `serve` with LinkClosed.
    """

    def __init__(
        self,
        stage: Stage,
        loops: int,
        ring: Ring,
        links: Links | None,
        sampler: Sampler | None,
        step_timeout: float,
        activations: ActivationFormat = "native",
        memory_bytes: int = 0,
        early: bool = False,
        parcels: bool = False,
    ) -> None:
        """`sampler`: on the last rank only.  `step_timeout`: seconds that each stage may take for a step.

        `activations`: how this stage's output travels.  `memory_bytes`: this rank's share, which it is to keep
        to; 0: as much as it wants.  `early`: post receives, and begin a step, when its input is announced, not
        only when it is there.  That hides the time to get work to a GPU, and costs a spinning core meanwhile.
        `parcels`: let small hidden states travel in frames, unless `early`; the model must be lazy.
        """
        self._loops = loops
        self._ring, self._links = ring, links
        self._sampler = sampler
        self._timeout = step_timeout
        self._activations = activations
        self.memory_bytes = memory_bytes
        self._early, self._parcels = early, parcels and not early
        self._next = (ring.rank + 1) % ring.size
        self._previous = (ring.rank - 1) % ring.size
        self.sequences = StageSequences(stage.make_cache)
        self._builder = Builder(stage, self.sequences, loops, alone=ring.size == 1)
        first = ring.rank == 0 and ring.size > 1 and loops == 1
        self._foresight = Foresight(stage, self.sequences) if first and self._parcels else None
        self.stats = WorkerStats(peak_memory=mx.get_peak_memory())
        mx.reset_peak_memory()  # loading is no sign of what steps take
        self.observer: StageObserver | None = None
        self.timeline: Timeline | None = None  # set it to record one; any thread may
        self._began = self._computed = 0.0  # time.monotonic() of the step at hand
        self._waited = 0.0  # seconds of it
        self._ahead = 0.0  # seconds in which it was built before
        self._unsettled: dict[int, int] = {}  # by group: decode steps since its caches were settled

    # the loop of every rank but the first

    def serve(self) -> None:
        """Apply frames until Goodbye.

        Raises TransportError when the ring breaks, EngineFault or MLX's RuntimeError when this stage fails.
        """
        links = self._require_links()
        while True:
            frame = links.inbound.receive(None)
            if isinstance(frame, Goodbye):
                self._ring.flush()
                if self._next != 0:
                    links.outbound.send(frame, self._timeout)
                return
            if not isinstance(frame, Step):
                raise FrameError(f"{frame!r} arrived where a Step was expected")
            result = self.run(frame)
            if result is not None:
                links.outbound.send(result, self._timeout)

    def goodbye(self) -> None:
        """Rank 0: let the other ranks leave their loops."""
        if self._links is not None:
            self._ring.flush()
            self._links.outbound.send(Goodbye(), self._timeout)

    # one step

    def run(self, step: Step) -> Result | None:
        """Apply a step to this stage.

        Returns the result if this was the last stage; otherwise the step has gone on to the next rank.
        """
        self._began, self._waited = time.monotonic(), 0.0
        self.stats.hung_at = self._began + self._timeout
        built = self._foresight.take(step) if self._foresight is not None else None
        if step.loop == 0:
            self._change(step)
        result = self._pass_on(step) if step.work is None else self._forward(step, step.work, built)
        self.stats.steps += 1
        self.stats.last_step = time.monotonic()
        if self.observer is not None:
            self.observer.stepped(step, self._began, self._waited, self.stats.last_step)
        if step.work is not None:
            self._mark("send", self._computed, step.id)
            self.stats.transfer_seconds += self.stats.last_step - self._computed
        self.stats.hung_at = None
        self.stats.sequences = self.sequences.live
        if self.stats.steps % CLEAR_STEPS == 0:
            mx.clear_cache()
        return result

    def _change(self, step: Step) -> None:
        for admission in step.admitted:
            if admission.origin:
                log.debug("admitted", sequence=admission.sequence, request_id=admission.origin)
            if self.observer is not None:
                self.observer.admitted(admission)
            self.sequences.admit(admission.sequence, admission.source, admission.length)
            if self._sampler is not None:
                self._sampler.add(
                    admission.sequence, admission.params, admission.prompt, admission.emitted
                )
        self.sequences.retain(step.retained)
        ended = [s for s in step.released if not self.sequences.is_retained(s)]
        for sequence in step.released:
            self.sequences.release(sequence)
        if self._sampler is not None:
            for sequence in (*step.retained, *ended):
                self._sampler.remove(sequence)
        if self.observer is not None:
            self.observer.ended((*step.retained, *ended))
        if step.released or step.retained:
            self.stats.cache_bytes = self.sequences.nbytes

    def _pass_on(self, step: Step) -> Result | None:
        if self._sampler is not None:
            return Result(step.id)
        self._require_links().outbound.send(step, self._timeout)
        return None

    def foresee(self, step: int, work: DecodeBatch) -> None:
        """Prepare step `step`, which is likely to be `work`, while there is nothing else to do."""
        if self._foresight is not None:
            began = time.monotonic()
            self.stats.hung_at = began + self._timeout
            built = self._foresight.foresee(work.group, work.sequences)
            self.stats.hung_at = None
            if built:
                self._mark("build", began, step)

    def _forward(self, step: Step, work: Prefill | Decode, built: Built | None) -> Result | None:
        expected = self._expect(step)
        if isinstance(work, Decode):
            lengths = [1] * len(work.sequences)
        else:
            lengths = [len(tokens) for tokens in work.tokens]
        if built is None:
            received = None if expected is None else expected.arrays
            built = self._builder.build(step, lengths, received)
        self._ahead = built.seconds
        if step.loop == 0:
            self.sequences.advance(work.sequences, lengths)
        caches, output = built.caches, built.output
        if isinstance(work, Prefill) and len(work.sequences) > 1:
            caches = self.sequences.part(work.sequences, caches)
        settle = self._must_settle(work)
        also = states(caches) if settle else []
        if expected is not None and expected.blank is None:
            also = [*expected.arrays, *also]  # what nothing depends on is to be received, too
        if isinstance(output, Message):
            self._hand_on(step, output, expected, also)
            return None
        return self._finish(step, work, output, expected, also)

    def _must_settle(self, work: Prefill | Decode) -> bool:
        """Counted per group: groups that take turns would never meet a count over all steps."""
        if isinstance(work, Prefill):
            return True
        steps = self._unsettled.get(work.group, 0) + 1
        self._unsettled[work.group] = steps % SETTLE_STEPS
        return steps == SETTLE_STEPS

    def _expect(self, step: Step) -> _Expected | None:
        """The previous stage's tensors, not yet arriving; None where the step begins."""
        if self._ring.rank == 0 and step.loop == 0:
            return None
        if self._parcels and fits(step.tensors):
            blank = Blank(step.tensors)
            return _Expected(blank.arrays, blank)
        return _Expected(self._ring.expect(step.tensors, self._previous))

    def _hand_on(
        self, step: Step, output: Message, expected: _Expected | None, also: list[Any]
    ) -> None:
        """Announce, compute, send.  The announcement goes first so that the next rank prepares meanwhile."""
        outbound = self._require_links().outbound
        specs, arrays = pack(*flatten(output), self._activations)
        outbound.send(self._announcement(step, specs), self._timeout)
        if self._parcels and fits(specs):
            parcel = wrapped(arrays)
            before = self._evaluate(step, expected, [parcel], also)
            before = msgspec.structs.replace(before, parcel=unwrapped(parcel, specs))
        else:
            before = self._evaluate(step, expected, arrays, also, send=True)
        outbound.send(before, self._timeout)
        self.stats.sent_bytes += sum(array.nbytes for array in arrays)

    def _announcement(self, step: Step, specs: tuple[TensorSpec, ...]) -> Step:
        if self._next == 0:  # round again: rank 0 has applied the changes already
            return Step(step.id, work=step.work, loop=step.loop + 1, tensors=specs)
        return msgspec.structs.replace(step, tensors=specs)

    def _finish(
        self,
        step: Step,
        work: Prefill | Decode,
        logits: mx.array,
        expected: _Expected | None,
        also: list[Any],
    ) -> Result:
        if self._sampler is None:
            raise EngineFault("a stage that is not the last one made logits")
        if isinstance(work, Prefill):
            # Without evaluating the logits, neither head nor the last layer's feed-forward is computed.
            done = self._evaluate(step, expected, [], also)
            return Result(step.id, seconds=done.seconds, memory=done.memory)
        if expected is None and self._sampler.constrains(work.sequences):
            # The last masks may still be in the making: nothing else keeps the stage from beginning.
            mx.async_eval(logits)  # type: ignore[no-untyped-call]
        sampled = self._sampler(logits[:, -1], work.sequences)
        done = self._evaluate(step, expected, sampled.arrays(), also)
        tokens, logprobs = sampled.record()
        asked = tuple(logprobs) if any(entry is not None for entry in logprobs) else ()
        return Result(
            step.id,
            tuple(tokens),
            asked,
            sampled.broken(),
            sampled.refused,
            done.seconds,
            done.memory,
        )

    def _evaluate(
        self,
        step: Step,
        expected: _Expected | None,
        outputs: list[mx.array],
        also: list[Any],
        send: bool = False,
    ) -> Ready:
        """Take the input, compute; `send`: the outputs go to the next stage, each the moment it is there.

        Returns what is to be told of this step: time and memory of all stages so far.
        """
        self._mark("build", self._began, step.id)
        before = Ready(step.id)
        early = self._early and expected is not None
        if expected is not None:
            if early:
                self._ring.post(expected.arrays)
                self._enqueue(step, outputs, also, send)
            before = self._await_input(step, expected, early)
        started = time.monotonic()
        if not early:
            started = self._enqueue(step, outputs, also, send)
        evaluate(outputs, also)
        self._computed = time.monotonic()
        self._mark("compute", started, step.id)
        self.stats.compute_seconds += self._computed - started
        # All that keeps this stage from the next step, building the graph included.
        took = self._computed - self._began - self._waited + self._ahead
        memory = max(before.memory, self.stats.memory_used(self.memory_bytes))
        return Ready(step.id, (*before.seconds, took), memory)

    def _enqueue(self, step: Step, outputs: list[mx.array], also: list[Any], send: bool) -> float:
        """Let MLX begin; when it began, after the next stage had room for more.

        On a CPU this may take most of the time that computing takes.
        """
        if send:
            waited = time.monotonic()
            # All other stages may be at work meanwhile.
            self.stats.hung_at = waited + self._timeout * self._loops * self._ring.size
            self._ring.make_room()
            began = self._waited_since(waited, step)
            self.stats.transfer_seconds += began - waited
            self.stats.hung_at = began + self._timeout
        started = time.monotonic()
        if send:
            self._ring.send(outputs, self._next)
        mx.async_eval(outputs, also)  # type: ignore[no-untyped-call]
        return started

    def _await_input(self, step: Step, expected: _Expected, posted: bool) -> Ready:
        """Wait for the previous stage's tensors; returns its Ready.

        `posted`: their receives have been; otherwise they are when Ready says that the tensors are there.
        """
        started = time.monotonic()
        stages_before = step.loop * self._ring.size + self._ring.rank
        patience = self._timeout * stages_before
        if posted:
            self.stats.hung_at = started + patience + self._timeout
            evaluate(expected.arrays)
        else:
            self.stats.hung_at = None  # the link has a deadline of its own
        frame: Frame = self._require_links().inbound.receive(patience)
        arrived = self._waited_since(started, step)
        self.stats.wait_seconds += arrived - started
        self.stats.hung_at = arrived + self._timeout
        if not isinstance(frame, Ready) or frame.step != step.id:
            raise FrameError(f"{frame!r} arrived where Ready of step {step.id} was expected")
        if expected.blank is not None:
            expected.blank.fill(frame.parcel)
        elif not posted:
            self._ring.post(expected.arrays)
        return frame

    def _waited_since(self, started: float, step: Step) -> float:
        """A wait of this step that has ended; returns now."""
        now = time.monotonic()
        self._waited += now - started
        self._mark("wait", started, step.id)
        return now

    def _mark(self, activity: Activity, start: float, step: int) -> None:
        timeline = self.timeline  # another thread may take it away
        if timeline is not None:
            timeline.add(activity, start, step)

    def _require_links(self) -> Links:
        if self._links is None:
            raise EngineFault("a ring of one rank has no links")
        return self._links
