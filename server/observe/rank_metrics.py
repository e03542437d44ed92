"""What ranks report, for Prometheus: on the gateway of all of them, on a node's own port of that node."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from server.observe.alerts import Alert
from server.observe.registry import PREFIX
from server.rpc.records import ClusterSnapshot, RankReport, RankState

LABELS = ("model_name", "rank", "node")


@dataclass(frozen=True)
class RankSample:
    """One rank at this moment."""

    rank: int
    node: str
    size: int  # ranks in the ring
    state: RankState
    report: RankReport | None
    heartbeat_age_s: float | None = None  # None: it speaks for itself

    @property
    def hop(self) -> str:
        """Itself and the next rank, to which it sends."""
        return f"{self.rank}>{(self.rank + 1) % self.size}"


@dataclass(frozen=True)
class _Measure:
    name: str
    text: str
    path: str  # attributes below a RankReport
    scale: float = 1.0

    def of(self, report: RankReport) -> float | None:
        """The value; None where the rank does not tell it."""
        value: object = report
        for part in self.path.split("."):
            value = getattr(value, part)
            if value is None:
                return None
        return self.scale * float(str(value))


_GAUGES = (
    _Measure("memory_bytes", "Held by MLX.", "memory.active"),
    _Measure("memory_peak_bytes", "Held by MLX at most.", "memory.peak"),
    _Measure("memory_cache_bytes", "Kept by MLX for reuse.", "memory.cache"),
    _Measure("memory_limit_bytes", "What weights and caches may take.", "memory.limit"),
    _Measure("parameter_bytes", "Weights of the stage.", "parameter_bytes"),
    _Measure("stage_sequences", "Sequences that run on the stage.", "sequences"),
    _Measure("last_step_age_seconds", "Since the last step.", "last_step_age_s"),
    _Measure("node_cpus", "Cores of the node.", "resources.cores"),
    _Measure("node_cpu_usage_ratio", "Of all cores, 0 to 1.", "resources.cpu_percent", 0.01),
    _Measure("node_memory_used_bytes", "In use on the node.", "resources.memory_used"),
    _Measure("node_memory_total_bytes", "Memory of the node.", "resources.memory_total"),
    _Measure("node_disk_used_bytes", "Where the model is.", "resources.disk_used"),
    _Measure("node_disk_total_bytes", "Where the model is.", "resources.disk_total"),
    _Measure("node_temperature_celsius", "The hottest sensor's.", "resources.temperature_c"),
    _Measure("node_power_watts", "Of the processor.", "resources.power_w"),
    _Measure("process_resident_bytes", "Of the rank.", "resources.process_memory"),
    _Measure("process_busy_cores", "By the rank.", "resources.process_cpu_percent", 0.01),
)
_COUNTERS = (
    _Measure("stage_steps", "Steps of the stage.", "stage.steps"),
    _Measure("stage_compute_seconds", "The stage computed.", "stage.compute_s"),
    _Measure("stage_wait_seconds", "It waited for the one before.", "stage.wait_s"),
    _Measure(
        "stage_transfer_seconds",
        "Until the next stage had taken what was sent.",
        "stage.transfer_s",
    ),
    _Measure("node_network_sent_bytes", "Since the node started.", "resources.network_sent"),
    _Measure(
        "node_network_received_bytes", "Since the node started.", "resources.network_received"
    ),
)
_OF_HOPS = (
    _Measure("hop_tensor_bytes", "Hidden states to the next rank.", "stage.sent_bytes"),
    _Measure("hop_frames", "Frames to the next rank.", "counters.frames_sent"),
    _Measure("hop_frame_bytes", "Bytes of frames to the next rank.", "counters.bytes_sent"),
)


class RankMetrics(Collector):
    """Reads the reports when they are asked for."""

    def __init__(self, model: str, ranks: Callable[[], Sequence[RankSample]]) -> None:
        self._model, self._ranks = model, ranks

    def collect(self) -> Iterator[Metric]:
        """See prometheus_client.registry.Collector."""
        ranks = self._ranks()
        for measure in _GAUGES:
            yield self._filled(GaugeMetricFamily, measure, ranks)
        for measure in _COUNTERS:
            yield self._filled(CounterMetricFamily, measure, ranks)
        for measure in _OF_HOPS:
            yield self._filled(CounterMetricFamily, measure, ranks, by_hop=True)
        up = GaugeMetricFamily(PREFIX + "rank_ready", "1 while the rank is ready.", labels=LABELS)
        age = GaugeMetricFamily(
            PREFIX + "heartbeat_age_seconds", "Since the rank was heard of.", labels=LABELS
        )
        for rank in ranks:
            up.add_metric(self._labels(rank), float(rank.state is RankState.READY))
            if rank.heartbeat_age_s is not None:
                age.add_metric(self._labels(rank), rank.heartbeat_age_s)
        yield from (up, age)

    def _filled(
        self,
        kind: type[GaugeMetricFamily | CounterMetricFamily],
        measure: _Measure,
        ranks: Sequence[RankSample],
        by_hop: bool = False,
    ) -> Metric:
        labels = (*LABELS, "hop") if by_hop else LABELS
        family = kind(PREFIX + measure.name, measure.text, labels=labels)
        for rank in ranks:
            value = None if rank.report is None else measure.of(rank.report)
            if value is not None:
                family.add_metric([*self._labels(rank), *([rank.hop] if by_hop else [])], value)
        return family

    def _labels(self, rank: RankSample) -> list[str]:
        return [self._model, str(rank.rank), rank.node]


class AlertMetrics(Collector):
    """A series for each alert, for as long as it lasts; their number is there always."""

    def __init__(self, model: str, alerts: Callable[[], Sequence[Alert]]) -> None:
        self._model, self._alerts = model, alerts

    def collect(self) -> Iterator[Metric]:
        """See prometheus_client.registry.Collector."""
        alerts = self._alerts()
        number = GaugeMetricFamily(
            PREFIX + "alerts", "Values beyond their threshold.", labels=["model_name"]
        )
        number.add_metric([self._model], len(alerts))
        yield number
        each = GaugeMetricFamily(
            PREFIX + "alert_value", "Of what is beyond its threshold.", labels=[*LABELS, "alert"]
        )
        for alert in alerts:
            each.add_metric([self._model, str(alert.rank), alert.node, alert.name], alert.value)
        yield each


class DroppedLines(Collector):
    """Log lines that found no room on a rank."""

    def __init__(self, model: str, dropped: Callable[[], Mapping[tuple[int, str], int]]) -> None:
        """`dropped`: by rank and node."""
        self._model, self._dropped = model, dropped

    def collect(self) -> Iterator[Metric]:
        """See prometheus_client.registry.Collector."""
        family = CounterMetricFamily(
            PREFIX + "log_lines_dropped", "That never reached the coordinator.", labels=LABELS
        )
        for (rank, node), lines in self._dropped().items():
            family.add_metric([self._model, str(rank), node], lines)
        yield family


def samples_of(snapshot: ClusterSnapshot) -> list[RankSample]:
    """All ranks, as the coordinator sees them."""
    return [
        RankSample(r.rank, r.node, snapshot.size, r.state, r.report, r.heartbeat_age_s)
        for r in snapshot.ranks
    ]
