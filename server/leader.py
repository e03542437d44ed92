"""What rank 0 adds: the OpenAI API, the coordinator, and the word that the cluster is ready."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
from importlib.metadata import version
from typing import NoReturn

import structlog
from mlx_lm.tokenizer_utils import TokenizerWrapper

import pipeline.engine_stats
from config import DEMO, Config, Settings
from pipeline.engine import Engine
from pipeline.errors import LinkTimeout
from pipeline.placement import Placement, reconfigured
from pipeline.request import GenerationRequest, SamplingParams
from pipeline.scheduler import Scheduler
from server.access.errors import AccessError
from server.access.principal import Role
from server.access.startup import Protection, protect
from server.api.app import create_app
from server.api.defaults import SamplingDefaults, read_defaults
from server.api.service import Listed, ServedModel, Service
from server.api.switching import Switching
from server.api.tokenizer import load_tokenizer
from server.closing import close_all
from server.dashboard import dashboard_routes
from server.engine_metrics import scheduling
from server.node.cluster_routes import ClusterView, EngineStats, cluster_routes, fault_of
from server.node.health import NodeView, health_app
from server.node.serve import HttpServers, Listener, StartupFailed, start_servers
from server.observe.leader_side import Alerts, Observatory
from server.rpc.client import CoordinatorClient
from server.rpc.coordinator import Coordinator
from server.rpc.errors import CoordinatorLost
from server.rpc.records import LEADER, ClusterSnapshot, HealthPolicy, RankState
from server.rpc.registry import ClusterRegistry
from server.rpc.runtime_settings import RuntimeSettings
from server.templating.renderer import SPARE
from server.tls.contexts import ClusterTls
from server.tls.errors import TlsError
from server.tls.gateway import GatewayTls, gateway_tls
from server.tls.notice import in_the_clear
from server.tls.rpc import server_credentials

log = structlog.get_logger()

WARM_UP = SamplingParams(temperature=0.0)
WARM_UP_TOKENS = 2
READY_SECONDS = 60.0  # for ranks that have loaded to say so
CLEANUP_SECONDS = 0.5  # for the ports to close after the grace of open responses
COORDINATOR_SECONDS = 0.5
UNKNOWN_LENGTH = 1 << 20  # tokens, where neither the model nor the configuration names a limit


class Leader:
    """See server.process.Role."""

    def __init__(
        self, settings: Settings, placement: Placement, view: NodeView, tls: ClusterTls | None
    ) -> None:
        config = settings.config
        self._tls = tls
        self._gateway_tls: GatewayTls | None = None
        self._watching: asyncio.Task[NoReturn] | None = None
        self._settings, self._placement = settings, placement
        self._meeting = placement.meeting
        self._engine: Engine | None = None
        self._tokenizer: TokenizerWrapper | None = None
        self._defaults = SamplingDefaults()
        self._warm = False
        self._stopping = False
        self._servers: HttpServers | None = None
        self._registry = ClusterRegistry(
            self._meeting.epoch, self._meeting.size, _health_policy(settings)
        )
        self._backend = RuntimeSettings(settings, self._apply)
        self._coordinator = Coordinator(
            self._registry,
            self._backend,
            log_lines=config.observe.log_lines,
            supervised_nodes=config.launcher.nodes,
        )
        self._service = Service(
            readiness=self._readiness,
            max_body_bytes=config.api_gateway.max_body_bytes,
            max_concurrent_requests=config.api_gateway.max_concurrent_requests,
            first_token_timeout=config.api_gateway.timeout,
            catalog=catalog_of(config),
            cors_origins=config.api_gateway.cors_origins,
            switching=Switching(
                config.launcher.supervised,
                config.api_gateway.model_autoswitch,
                Role.of(config.api_gateway.model_autoswitch_role),
                config.api_gateway.model_autoswitch_stay,
            ),
            log_prompts=config.access.log_prompts,
        )
        cluster = ClusterView(
            name=config.cluster.name,
            model=config.model.name,
            version=version("mlx-cluster"),
            hang_after_s=config.network.step_timeout,
            snapshot=self._coordinator.snapshot,
            engine_stats=self._stats,
            scheduling=self._scheduling,
            uptime_s=view.uptime_s,
            alerts=Alerts(lambda: self._backend.settings),
        )
        self.observatory = Observatory(cluster, self._coordinator, lambda: self._engine)
        self._service.on_finish = self.observatory.book.finished
        self.routes = [
            *cluster_routes(cluster),
            *self.observatory.routes(),
            *dashboard_routes(launcher=False),
        ]
        self._view = view

    def _protect(self) -> Protection:
        config, meeting = self._settings.config, self._meeting
        coordinator = config.coordinator.host or meeting.host
        listening = [config.api_gateway.host, coordinator, *meeting.hosts]
        try:
            return protect(config, listening, meeting.hosts)
        except AccessError as error:
            raise StartupFailed(str(error)) from error

    async def start(self) -> None:
        """Load the tokenizer and open all ports; the API answers 503 until the model is there.

        Raises CheckpointError too: a broken tokenizer or template is told before any weights are read.
        Raises StartupFailed if strangers could come in and nobody has said that they may.
        """
        access = self._protect()
        own = None if self._tls is None else self._tls.server
        try:
            if (
                not self._settings.config.launcher.supervised
            ):  # else the launcher's front door has it
                self._gateway_tls = gateway_tls(self._settings.config.tls)
            self._coordinator.credentials = (
                None if self._tls is None else server_credentials(self._tls)
            )
        except TlsError as error:
            raise StartupFailed(str(error)) from error
        log.info(access.notice)
        config = self._settings.config
        if clear := in_the_clear(config.tls, config.api_gateway.host, self._meeting.hosts):
            log.warning(clear)
        self._tokenizer, self._defaults = await asyncio.to_thread(self._text_side)
        gateway, node = self._settings.config.api_gateway, self._meeting.node
        app = create_app(self._service, self.routes, access.guard)
        health = health_app(self._view, access.status)
        shown = None if self._gateway_tls is None else self._gateway_tls.context
        listeners = [
            Listener("inference", app, self._meeting.host, node.ports.inference, own),
            Listener("health", health, self._meeting.host, node.ports.health, own),
        ]
        if not self._settings.config.launcher.supervised:
            listeners.append(Listener("gateway", app, gateway.host, gateway.port, shown))
        self._servers = await start_servers(listeners)
        if self._gateway_tls is not None:
            self._watching = asyncio.create_task(self._gateway_tls.watch())
        coordinator = self._settings.config.coordinator
        host = coordinator.host or self._meeting.host
        self._coordinator.interceptors = [access.coordinator]
        await self._coordinator.start(host, coordinator.port)
        self.observatory.start()

    async def serve(self, engine: Engine | None, client: CoordinatorClient) -> None:
        """Wait for all ranks, run the pipeline once, then say that requests are welcome."""
        assert engine is not None, "rank 0 has an engine"
        self._engine = engine
        client.beat_here(self._coordinator.heartbeat)
        model = self._served_model(engine)
        await wait_for_others(client, READY_SECONDS)
        await _warm_up(engine)
        self._service.model, self._service.loaded_at = model, self._service.clock()
        shared = self._settings.config.api_gateway.deduplicate
        self._service.generator = self.observatory.observed(engine, shared=shared)
        self._warm = True
        print(banner(self._settings, self._coordinator.snapshot()), file=sys.stdout, flush=True)

    async def stop(self, grace: int) -> None:
        """Refuse new requests, close the ports, end the coordinator."""
        self._stopping = True
        if self._watching is not None:
            self._watching.cancel()
        self.observatory.close()
        if self._servers is not None:
            await close_all({"ports": self._servers.stop(grace)}, grace + CLEANUP_SECONDS)
        # Last: ranks that still work on open responses keep sending heartbeats.
        coordinator = self._coordinator.stop(COORDINATOR_SECONDS / 2)
        await close_all({"coordinator": coordinator}, COORDINATOR_SECONDS)

    def _text_side(self) -> tuple[TokenizerWrapper, SamplingDefaults]:
        checkpoint = self._placement.checkpoint
        trusted = self._settings.config.model.trust_remote_code
        tokenizer = load_tokenizer(checkpoint.path, checkpoint.config, trusted)
        SPARE.drop()  # of a rank that has waited, whose model has no template
        return tokenizer, read_defaults(checkpoint.path)

    def _served_model(self, engine: Engine) -> ServedModel:
        config, checkpoint = self._settings.config, self._placement.checkpoint
        tokenizer = self._tokenizer
        assert tokenizer is not None, "the ports are open"
        aliases = {config.model.source} - {config.model.name}
        return ServedModel(
            id=config.model.name,
            tokenizer=tokenizer,
            max_model_len=engine.max_model_len or UNKNOWN_LENGTH,
            created=int(time.time()),
            end_tokens=tuple(sorted(tokenizer.eos_token_ids)),
            vocab_size=checkpoint.vocab_size,
            aliases=tuple(sorted(aliases)),
            defaults=self._defaults,
        )

    def _readiness(self) -> str | None:
        """Why requests can't be served, or None."""
        if self._stopping:
            return "the server is stopping"
        snapshot = self._coordinator.snapshot()
        fault = fault_of(snapshot, self._stats(), self._settings.config.network.step_timeout)
        if fault:
            return fault
        if self._warm:
            return None
        return snapshot.reason or "the model is being warmed up"

    def _stats(self) -> EngineStats:
        if self._engine is None:
            return EngineStats()
        stats = self._engine.stats()
        return EngineStats(stats.running, stats.waiting, stats.last_step_age, stats.busy)

    def _engine_stats(self) -> pipeline.engine_stats.EngineStats | None:
        return None if self._engine is None else self._engine.stats()

    def _scheduling(self) -> dict[str, object] | None:
        stats = self._engine_stats()
        return None if stats is None else scheduling(stats)

    def _apply(self, settings: Settings) -> None:
        """Let changed settings take effect at once."""
        config = settings.config
        self._registry.policy = _health_policy(settings)
        self._service.max_concurrent_requests = config.api_gateway.max_concurrent_requests
        self._service.first_token_timeout = config.api_gateway.timeout

        def change(scheduler: Scheduler) -> None:
            scheduler.reconfigure(reconfigured(scheduler.limits, config))

        if self._engine is not None:
            self._engine.configure(change)


def catalog_of(config: Config) -> tuple[Listed, ...]:
    """The models that can be served by name, and the one that is."""
    models = {**config.models, config.model.name: config.model}
    return tuple(
        Listed(model.name, model.max_model_len, tuple({model.source} - {model.name, DEMO}))
        for model in models.values()
    )


async def _warm_up(engine: Engine) -> None:
    """A prompt and two tokens through every stage, so that the first user does not wait for compilation."""
    request = GenerationRequest(
        id="warm-up", prompt=(0, 1, 2, 3), params=WARM_UP, max_tokens=WARM_UP_TOKENS
    )
    async for _ in engine.generate(request):
        pass


async def wait_for_others(client: CoordinatorClient, seconds: float) -> None:
    """Return when all ranks but the first are ready.

    Raises LinkTimeout, naming those that are not after `seconds`; CoordinatorLost.
    """
    try:
        await asyncio.wait_for(_until_others_ready(client), seconds)
    except asyncio.TimeoutError:
        late = _late(await client.status())
        raise LinkTimeout(
            f"rank {late} did not say within {seconds:g} s of loading that it is ready"
        ) from None


async def _until_others_ready(client: CoordinatorClient) -> None:
    async with contextlib.aclosing(client.watch()) as snapshots:
        async for snapshot in snapshots:
            if not _late(snapshot):
                return
    raise CoordinatorLost("the coordinator stopped before all ranks were ready")


def _late(snapshot: ClusterSnapshot) -> str:
    """Ranks that are not ready; without rank 0, which is after the warm-up, which needs all others."""
    ready = {rank.rank for rank in snapshot.ranks if rank.state is RankState.READY}
    return ", ".join(str(rank) for rank in range(snapshot.size) if rank not in ready | {LEADER})


def _health_policy(settings: Settings) -> HealthPolicy:
    coordinator = settings.config.coordinator
    return HealthPolicy(coordinator.health_check_interval, coordinator.failure_threshold)


def banner(settings: Settings, snapshot: ClusterSnapshot) -> str:
    """What a person who started the cluster wants to see: where it is, which layers are where, what to try."""
    config = settings.config
    scheme = "http" if config.tls.gateway.mode == "off" else "https"
    trust = f"--cacert {config.tls.cluster.ca_path} " if config.tls.gateway.mode == "own" else ""
    address = f"{scheme}://{config.api_gateway.host}:{config.api_gateway.port}"
    ranks = "1 rank" if snapshot.size == 1 else f"{snapshot.size} ranks"
    lines = [f"\n{config.model.name} is served on {address} by {ranks}"]
    for rank in snapshot.ranks:
        first, last = rank.registration.layers
        megabytes = (rank.report.parameter_bytes if rank.report else 0) / 1e6
        lines.append(
            f"  rank {rank.rank}  {rank.node:10}  layers {first:>3} to {last:<3}"
            f" ({last - first + 1:>3})  {megabytes:9.1f} MB"
        )
    body = (
        f'{{"model": "{config.model.name}", "messages": '
        '[{"role": "user", "content": "What is the capital of France?"}], "temperature": 0}'
    )
    lines += [
        "Try:",
        f"  curl {trust}{address}/v1/chat/completions -H 'Content-Type: application/json' -d '{body}'\n",
    ]
    return "\n".join(lines)
