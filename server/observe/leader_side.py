"""All that rank 0 shows of the cluster, put together."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence

from prometheus_client import CollectorRegistry
from starlette.routing import Route

from config import Settings
from pipeline.engine import Engine
from pipeline.engine_stats import EngineStats
from pipeline.request import Generator
from server.api.wire import to_json
from server.engine_metrics import EngineMetrics
from server.node.cluster_routes import ClusterView
from server.observe.alerts import Alert, alerts_of
from server.observe.config_routes import config_routes
from server.observe.feed import EventFeed
from server.observe.latency import Latencies
from server.observe.picture import Picture
from server.observe.rank_metrics import AlertMetrics, DroppedLines, RankMetrics, samples_of
from server.observe.registry import REGISTRY, metrics_route
from server.observe.requests import Observed, RequestBook
from server.observe.routes import cancel_route, events_route, logs_route, timeline_route
from server.rpc.coordinator import Coordinator
from server.rpc.records import ClusterSnapshot, HealthPolicy
from server.sharing import Sharing


class Alerts:
    """By the settings in force."""

    def __init__(self, settings: Callable[[], Settings]) -> None:
        self._settings = settings

    def __call__(self, snapshot: ClusterSnapshot) -> Sequence[Alert]:
        config = self._settings().config
        coordinator = config.coordinator
        policy = HealthPolicy(coordinator.health_check_interval, coordinator.failure_threshold)
        return alerts_of(snapshot, config.observe.alerts, policy)


class Observatory:
    """Metrics, the event feed, timelines and the requests in flight."""

    def __init__(
        self,
        view: ClusterView,
        coordinator: Coordinator,
        engine: Callable[[], Engine | None],
    ) -> None:
        """`engine`: None until it is there."""
        self._sharing: Sharing | None = None
        self._coordinator, self._engine = coordinator, engine
        self._registry = registry = CollectorRegistry(auto_describe=False)
        self._epoch = coordinator.snapshot().epoch
        self.book = RequestBook(Latencies(view.model, registry))

        registry.register(EngineMetrics(view.model, self._stats))
        registry.register(RankMetrics(view.model, lambda: samples_of(view.snapshot())))
        registry.register(DroppedLines(view.model, lambda: coordinator.logs.dropped))
        registry.register(AlertMetrics(view.model, lambda: view.alerts(view.snapshot())))
        picture = Picture(view, self.book, self._stats, self._admitted)
        self.feed = EventFeed(lambda: to_json(picture()))
        self._watch: asyncio.Task[None] | None = None

    def routes(self) -> list[Route]:
        """For rank 0's application."""
        return [
            metrics_route(REGISTRY, self._registry),
            events_route(self.feed),
            timeline_route(self._coordinator.record_timeline, self._epoch),
            logs_route(self._coordinator.logs),
            cancel_route(self.book, self._cancel),
            *config_routes(self._coordinator.config),
        ]

    def observed(self, generator: Generator, *, shared: bool = False) -> Generator:
        """The generator to serve requests with; `shared`: what identical ones have in common is made once."""
        if shared:
            self._sharing = generator = Sharing(generator)
        return Observed(generator, self.book)

    def start(self) -> None:
        """Follow the coordinator, in whose loop this runs."""
        self._watch = asyncio.create_task(self._follow())

    def close(self) -> None:
        """End the feeds."""
        if self._watch is not None:
            self._watch.cancel()
        self.feed.close()

    async def _follow(self) -> None:
        """A change of the cluster is shown at once."""
        async with contextlib.aclosing(self._coordinator.watch()) as snapshots:
            async for _ in snapshots:
                self.feed.poke()

    def _stats(self) -> EngineStats | None:
        engine = self._engine()
        return None if engine is None else engine.stats()

    def _admitted(self) -> frozenset[str]:
        engine = self._engine()
        admitted = frozenset() if engine is None else engine.admitted()
        return admitted if self._sharing is None else self._sharing.admitted(admitted)

    def _cancel(self, sequence: str) -> None:
        engine = self._engine()
        if self._sharing is not None:
            self._sharing.cancel(sequence)
        elif engine is not None:
            engine.cancel(sequence)
