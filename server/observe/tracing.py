"""OpenTelemetry spans of requests, and of what each stage does for them; imported where they are wanted."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Span, SpanKind, StatusCode, Tracer, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from pipeline.frames import Admission, Decode, Prefill, Step
from server.observe.flight import Flight

SERVICE = "mlx-cluster"
EXPORT_SECONDS = 5.0  # for one message to the collector
_propagator = TraceContextTextMapPropagator()


class Tracing:
    """The spans of this process.  `close` sends what is left, for at most a few seconds."""

    def __init__(self, endpoint: str, node: str, rank: int, epoch: int, version: str) -> None:
        resource = Resource.create(
            {
                "service.name": SERVICE,
                "service.version": version,
                "service.instance.id": node,
                "mlxc.rank": rank,
                "mlxc.epoch": epoch,
            }
        )
        exporter = OTLPSpanExporter(f"{endpoint.rstrip('/')}/v1/traces", timeout=EXPORT_SECONDS)
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        tracer = self._provider.get_tracer(SERVICE, version)
        self.requests = RequestTracer(tracer)
        self.stage = StageTracer(tracer, rank)

    def close(self) -> None:
        """Send what is left.  Blocks."""
        self._provider.shutdown()


class _Clock:
    """Monotonic seconds as Unix time in nanoseconds."""

    def __init__(self) -> None:
        self._offset = time.time_ns() - time.monotonic_ns()

    def __call__(self, seconds: float) -> int:
        return int(seconds * 1e9) + self._offset


class RequestTracer:
    """On rank 0: a span for each sequence, with its parts: queue, prefill, decode."""

    def __init__(self, tracer: Tracer) -> None:
        self._tracer, self._clock = tracer, _Clock()
        self._open: dict[str, Span] = {}

    def begin(self, flight: Flight) -> str:
        """A sequence has arrived.  Returns the traceparent of its span; empty where it is not sampled."""
        request, caller = flight.request, flight.caller
        span = self._tracer.start_span(
            "generate",
            _propagator.extract({"traceparent": caller.traceparent}, Context()),
            SpanKind.SERVER,
            {
                "mlxc.request_id": caller.request_id,
                "mlxc.sequence": request.id,
                "gen_ai.request.max_tokens": request.max_tokens,
                "gen_ai.usage.input_tokens": len(request.prompt),
            },
            start_time=self._clock(flight.began),
        )
        if not span.get_span_context().trace_flags.sampled:
            return ""
        self._open[request.id] = span
        carrier: dict[str, str] = {}
        _propagator.inject(carrier, set_span_in_context(span, Context()))
        return carrier["traceparent"]

    def end(self, flight: Flight, now: float) -> None:
        """It has ended, in whatever way."""
        span = self._open.pop(flight.request.id, None)
        if span is None:
            return
        if flight.queued is not None and flight.first_at is not None:
            placed = flight.began + flight.queued
            self._part(span, "queue", flight.began, placed)
            self._part(span, "prefill", placed, flight.first_at)
            self._part(span, "decode", flight.first_at, flight.last_at or now)
        span.set_attribute("gen_ai.usage.output_tokens", flight.tokens)
        span.set_attribute("mlxc.finish_reason", flight.finish or "abort")
        if flight.error is not None:
            span.set_status(StatusCode.ERROR, type(flight.error).__name__)
        span.end(self._clock(now))

    def _part(self, parent: Span, name: str, start: float, end: float) -> None:
        inside = set_span_in_context(parent, Context())
        span = self._tracer.start_span(name, inside, start_time=self._clock(start))
        span.end(self._clock(end))


@dataclass
class _Traced:
    """A sequence on this stage; times are monotonic seconds."""

    context: Context  # of its span on rank 0
    origin: str
    began: float | None = None  # its first decode step
    ended: float = 0.0  # its last one
    steps: int = 0
    busy: float = 0.0
    waited: float = 0.0


class StageTracer:
    """On every rank: a span for each prefill chunk, and one for all decode steps of a sequence.

    Implements pipeline.observer.StageObserver.
    """

    def __init__(self, tracer: Tracer, rank: int) -> None:
        self._tracer, self._rank, self._clock = tracer, rank, _Clock()
        self._traced: dict[int, _Traced] = {}

    def admitted(self, admission: Admission) -> None:
        """See StageObserver."""
        if admission.trace:
            context = _propagator.extract({"traceparent": admission.trace}, Context())
            self._traced[admission.sequence] = _Traced(context, admission.origin)

    def stepped(self, step: Step, began: float, waited: float, ended: float) -> None:
        """See StageObserver."""
        work = step.work
        if isinstance(work, Prefill):
            for sequence, tokens in zip(work.sequences, work.tokens, strict=True):
                traced = self._traced.get(sequence)
                if traced is not None:
                    fields = {"mlxc.step": step.id, "mlxc.tokens": len(tokens)}
                    self._span("stage.prefill", traced, began, ended, waited, fields)
        elif isinstance(work, Decode):
            for sequence in work.sequences if self._traced else ():
                traced = self._traced.get(sequence)
                if traced is not None:
                    self._count(traced, began, waited, ended)

    def ended(self, sequences: Iterable[int]) -> None:
        """See StageObserver."""
        for sequence in sequences if self._traced else ():
            traced = self._traced.pop(sequence, None)
            if traced is not None and traced.began is not None:
                fields = {"mlxc.steps": traced.steps, "mlxc.busy_s": traced.busy}
                self._span(
                    "stage.decode", traced, traced.began, traced.ended, traced.waited, fields
                )

    def _count(self, traced: _Traced, began: float, waited: float, ended: float) -> None:
        if traced.began is None:
            traced.began = began
        traced.ended = ended
        traced.steps += 1
        traced.busy += ended - began - waited
        traced.waited += waited

    def _span(
        self,
        name: str,
        traced: _Traced,
        began: float,
        ended: float,
        waited: float,
        fields: Mapping[str, float],
    ) -> None:
        common: dict[str, str | float] = {
            "mlxc.rank": self._rank,
            "mlxc.request_id": traced.origin,
            "mlxc.waited_s": waited,
        }
        start = self._clock(began)
        span = self._tracer.start_span(
            name, traced.context, SpanKind.INTERNAL, {**common, **fields}, start_time=start
        )
        span.end(self._clock(ended))
