"""How long requests took and how large they were, as Prometheus histograms."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Histogram

from server.observe.flight import Flight
from server.observe.registry import PREFIX

_FAST = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
_SLOW = (0.001, 0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80, 160, 320, 640)
_TOKENS = tuple(2.0**power for power in range(18))


class Latencies:
    """The histograms of one model."""

    def __init__(self, model: str, registry: CollectorRegistry) -> None:
        def histogram(name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
            family = Histogram(
                PREFIX + name, text, ["model_name"], registry=registry, buckets=buckets
            )
            child: Histogram = family.labels(model)
            return child

        self.first_token = histogram(
            "time_to_first_token_seconds", "From arrival to the first token.", _SLOW
        )
        self.inter_token = histogram(
            "inter_token_latency_seconds", "Between two tokens of a request.", _FAST
        )
        self.whole = histogram("e2e_request_latency_seconds", "From arrival to the end.", _SLOW)
        self.queue = histogram(
            "request_queue_time_seconds", "Before it had a place on the stages.", _SLOW
        )
        self.prefill = histogram(
            "request_prefill_time_seconds", "From its place to the first token.", _SLOW
        )
        self.decode = histogram(
            "request_decode_time_seconds", "From the first token to the last.", _SLOW
        )
        self.prompt = histogram("request_prompt_tokens", "Tokens of the prompt.", _TOKENS)
        self.output = histogram("request_generation_tokens", "Tokens made.", _TOKENS)
        self._success = Counter(
            PREFIX + "request_success",
            "Requests that ended as they should, or were ended by their client.",
            ["model_name", "finished_reason"],
            registry=registry,
        )
        self._model = model
        for reason in ("stop", "length", "abort"):
            self._success.labels(model, reason)

    def first(self, flight: Flight, now: float) -> None:
        """Its first token is here.  One that goes on elsewhere has had its first one there."""
        took = now - flight.began
        if not flight.request.emitted:
            self.first_token.observe(took)
        if flight.queued is not None:
            self.queue.observe(flight.queued)
            self.prefill.observe(max(0.0, took - flight.queued))

    def end(self, flight: Flight, now: float) -> None:
        """It has ended; errors are counted where they become responses."""
        if flight.tokens:
            self.prompt.observe(len(flight.request.prompt))
            self.output.observe(flight.tokens)
        if flight.error is not None:
            return
        if flight.finish is not None and flight.first_at is not None:
            if not flight.request.emitted:
                self.whole.observe(now - flight.began)
            self.decode.observe(now - flight.first_at)
        self._success.labels(self._model, flight.finish or "abort").inc()
