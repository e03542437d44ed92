"""What the engine decides, as JSON and for Prometheus."""

from __future__ import annotations

from dataclasses import replace

from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families
from starlette.applications import Starlette
from starlette.testclient import TestClient

from pipeline.engine_stats import EngineStats
from pipeline.limits import Limits
from pipeline.memory import Budget, MemoryState
from pipeline.pacing import Choice
from pipeline.prefixes import PrefixStats
from pipeline.turns import Postponed
from server.engine_metrics import EngineMetrics, scheduling
from server.observe.registry import metrics_route

STATS = EngineStats(
    running=5,
    waiting=2,
    in_flight=3,
    groups=((1, 2, 3), (), (4, 5)),
    steps=100,
    last_step_age=0.01,
    busy=3.0,
    generated_tokens=77,
    prompt_tokens=900,
    prefixes=PrefixStats(4, 1, 32, 2, 64),
    memory=MemoryState(1.25, Budget(0, 4), 3, 2),
    choice=Choice(
        5, 2, 'a token every 9.0 ms, "against" 12.0', 0.004, 0.0005, 0.05, (0.012, 0.009)
    ),
    limits=Limits(3, 100, 100, 32, 128, kv_tokens=1000),
    postponed=Postponed(12, 1.5),
    kv_tokens=250,
)


def samples(stats: EngineStats | None) -> dict[str, float]:
    """Values by name; for the info metric, its reason is part of the name."""
    registry = CollectorRegistry()
    registry.register(EngineMetrics("demo", lambda: stats))
    app = Starlette(routes=[metrics_route(registry)])
    response = TestClient(app).get("/metrics")
    assert response.headers["content-type"].startswith("text/plain")
    found = {}
    for family in text_string_to_metric_families(response.text):
        for sample in family.samples:
            assert sample.labels["model_name"] == "demo"
            found[sample.name + sample.labels.get("reason", "")] = sample.value
    return found


def test_metrics() -> None:
    assert samples(STATS) == {
        "mlxc_num_requests_running": 5,
        "mlxc_num_requests_waiting": 2,
        "mlxc_kv_cache_usage_perc": 0.25,
        "mlxc_prompt_tokens_total": 900,
        "mlxc_generation_tokens_total": 77,
        "mlxc_prefix_cache_queries_total": 4,
        "mlxc_prefix_cache_hits_total": 1,
        "mlxc_prefix_cache_hit_tokens_total": 32,
        "mlxc_decode_groups": 2,
        "mlxc_decode_step_fixed_seconds": 0.004,
        "mlxc_decode_step_sequence_seconds": 0.0005,
        f"mlxc_decode_groups_choice_info{STATS.choice.reason}": 1,
        "mlxc_decode_postponed_prefill_steps_total": 12,
        "mlxc_decode_postponed_seconds_total": 1.5,
        "mlxc_memory_used_ratio": 1.25,
        "mlxc_memory_reduced": 1,
        "mlxc_memory_reductions_total": 3,
        "mlxc_preemptions_total": 2,
    }


def test_what_is_not_known_is_left_out() -> None:
    assert samples(None) == {}
    unknown = replace(
        STATS,
        choice=Choice(0, 1, "nothing has run yet"),
        limits=replace(STATS.limits, kv_tokens=None),
    )
    missing = set(samples(STATS)) - set(samples(unknown))
    assert {name for name in missing if "choice" not in name} == {
        "mlxc_decode_step_fixed_seconds",
        "mlxc_decode_step_sequence_seconds",
        "mlxc_kv_cache_usage_perc",
    }


def test_scheduling_shows_the_choice_and_its_reason() -> None:
    shown = scheduling(STATS)
    assert shown["micro_batches"] == {
        "members": [3, 2],
        "wanted": 2,
        "for_sequences": 5,
        "reason": STATS.choice.reason,
        "step_fixed_ms": 4.0,
        "step_per_sequence_ms": 0.5,
        "step_noise": 0.05,
        "predicted_cycle_ms": [12.0, 9.0],
    }
    assert shown["memory"] == {
        "used": 1.25,
        "reductions": 3,
        "preempted": 2,
        "prefix_tokens_at_most": 0,
        "running_at_most": 4,
    }
    assert shown["steps_postponed_for_prefill"] == {"chunks": 12, "predicted_ms": 1500.0}
    assert shown["kv_tokens"] == {"reserved": 250, "limit": 1000}
