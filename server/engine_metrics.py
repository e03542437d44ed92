"""What the engine decides and why: for /v1/cluster, and for Prometheus at /metrics."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector

from pipeline.engine_stats import EngineStats
from server.observe.registry import PREFIX


def scheduling(stats: EngineStats) -> dict[str, object]:
    """Micro-batches, memory and prefixes as JSON; times in milliseconds."""
    choice, memory, prefixes, limits = stats.choice, stats.memory, stats.prefixes, stats.limits
    return {
        "running": stats.running,
        "waiting": stats.waiting,
        "steps_in_flight": stats.in_flight,
        "batchable": limits.batchable,
        "prefill_chunk_tokens_at_most": limits.prefill_chunk,
        "inter_token_bound_ms": _milliseconds(limits.inter_token),
        "micro_batches": {
            "members": [len(group) for group in stats.groups if group],
            "wanted": choice.groups,
            "for_sequences": choice.sequences,
            "reason": choice.reason,
            "step_fixed_ms": _milliseconds(choice.fixed),
            "step_per_sequence_ms": _milliseconds(choice.slope),
            "step_noise": choice.noise,
            "predicted_cycle_ms": [_milliseconds(cycle) for cycle in choice.cycles],
        },
        "steps_postponed_for_prefill": {
            "chunks": stats.postponed.chunks,
            "predicted_ms": _milliseconds(stats.postponed.seconds),
        },
        "kv_tokens": {"reserved": stats.kv_tokens, "limit": limits.kv_tokens},
        "prefix_cache": {
            "sequences": prefixes.sequences,
            "tokens": prefixes.tokens,
            "queries": prefixes.queries,
            "hits": prefixes.hits,
            "hit_tokens": prefixes.hit_tokens,
        },
        "memory": {
            "used": memory.used,
            "reductions": memory.reductions,
            "preempted": memory.preempted,
            "prefix_tokens_at_most": memory.budget.prefix_tokens,
            "running_at_most": memory.budget.running,
        },
    }


def _milliseconds(seconds: float | None) -> float | None:
    return None if seconds is None else round(1e3 * seconds, 3)


class EngineMetrics(Collector):
    """Reads the engine's counters when they are asked for."""

    def __init__(self, model: str, stats: Callable[[], EngineStats | None]) -> None:
        """`stats`: None until there is an engine."""
        self._model, self._stats = model, stats

    def collect(self) -> Iterator[Metric]:
        """See prometheus_client.registry.Collector."""
        stats = self._stats()
        if stats is None:
            return
        choice, memory, prefixes = stats.choice, stats.memory, stats.prefixes
        yield self._gauge("num_requests_running", "Sequences with caches.", stats.running)
        yield self._gauge("num_requests_waiting", "Sequences without caches.", stats.waiting)
        if stats.limits.kv_tokens:
            used = stats.kv_tokens / stats.limits.kv_tokens
            yield self._gauge("kv_cache_usage_perc", "Of the KV cache, from 0 to 1.", used)
        yield self._counter("prompt_tokens", "Prompt tokens prefilled.", stats.prompt_tokens)
        yield self._counter("generation_tokens", "Tokens made.", stats.generated_tokens)
        yield self._counter("prefix_cache_queries", "Prompts looked up.", prefixes.queries)
        yield self._counter("prefix_cache_hits", "Prompts with a prefix.", prefixes.hits)
        yield self._counter("prefix_cache_hit_tokens", "Not prefilled.", prefixes.hit_tokens)
        yield self._gauge("decode_groups", "Micro-batches wanted.", choice.groups)
        if choice.fixed is not None and choice.slope is not None:
            text = "T(B) of the slowest stage: {}, seconds."
            fixed, slope = text.format("at B = 0"), text.format("for each sequence")
            yield self._gauge("decode_step_fixed_seconds", fixed, choice.fixed)
            yield self._gauge("decode_step_sequence_seconds", slope, choice.slope)
        reason = InfoMetricFamily(
            f"{PREFIX}decode_groups_choice", "Why so many micro-batches.", labels=["model_name"]
        )
        reason.add_metric([self._model], {"reason": choice.reason})
        yield reason
        text = "Prefill steps that decode steps were made to wait for."
        yield self._counter("decode_postponed_prefill_steps", text, stats.postponed.chunks)
        text = "Predicted seconds of these."
        yield self._counter("decode_postponed_seconds", text, stats.postponed.seconds)
        yield self._gauge("memory_used_ratio", "Of its share, on the fullest stage.", memory.used)
        reduced = float(memory.budget.reduced)
        yield self._gauge("memory_reduced", "1 while memory keeps the batch small.", reduced)
        yield self._counter("memory_reductions", "Times that it shrank.", memory.reductions)
        yield self._counter("preemptions", "Sequences prefilled again.", memory.preempted)

    def _gauge(self, name: str, text: str, value: float) -> GaugeMetricFamily:
        family = GaugeMetricFamily(PREFIX + name, text, labels=["model_name"])
        family.add_metric([self._model], value)
        return family

    def _counter(self, name: str, text: str, value: float) -> CounterMetricFamily:
        family = CounterMetricFamily(PREFIX + name, text, labels=["model_name"])
        family.add_metric([self._model], value)
        return family
