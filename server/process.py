"""One rank's process: the engine in its thread, the ports and the control plane in this asyncio loop.

Start-up and shutdown are ordered short steps.  Every rank runs the same ones; what only rank 0 or only the
others do stands in server.leader and server.follower.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import stat
import time
from collections.abc import Awaitable, Mapping
from concurrent.futures import Future
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, NoReturn, Protocol, TypeVar, cast

import structlog

from config import Settings
from pipeline.engine import Engine
from pipeline.errors import LinkClosed, LinkTimeout, ModelError
from pipeline.placement import Placement
from pipeline.rank import Phase, Rank
from server import descriptors, garbage, launch_files, logs
from server.access.errors import AccessError
from server.access.rpc import Credential, cluster_credential
from server.closing import STOP_SIGNALS, close_all
from server.control import Reporter, port_problem, registration_of
from server.follower import Follower
from server.node.health import NodeView
from server.node.serve import StartupFailed
from server.observe.log_shipper import LogShipper
from server.observe.resources import ResourceMonitor
from server.observe.timeline import TimelineRecorder
from server.progress import Announcer, Step
from server.rpc.client import CoordinatorClient
from server.rpc.errors import BindError
from server.rpc.records import Registration
from server.rpc.runtime_settings import RuntimeSettings
from server.tls.own import OwnTls
from server.tls.rpc import ClientTls
from server.tls.tunnel.rank_side import Tunnel, open_tunnel

if TYPE_CHECKING:
    from server.leader import Leader
    from server.observe.tracing import Tracing

log = structlog.get_logger()

T = TypeVar("T")

JOIN_SECONDS = 120.0  # for all ranks to be there; MLX itself may wait for ever
PROGRESS_SECONDS = 1.0
WATCHDOG_SECONDS = 2.0  # between two looks at the step at hand, at most
LOADED_DEADLINE = 60.0  # seconds to register with the coordinator, which starts at the same time
# These together stay below the grace that the launcher gives (launcher.job.GRACE), and mlx.launch to it.
HTTP_GRACE_SECONDS = 2
PORTS_SECONDS = 3.5  # for the ports, the grace included
CONTROL_SECONDS = 0.5  # for this rank's side of the control plane
GOODBYE_SECONDS = 3.0  # for the ring to end in order
FAREWELL_SECONDS = 1.0  # for a rank to hear by frames why the tunnel of a neighbour has closed
ABORT_SECONDS = 0.5  # for a rank whose links are closed; it may hang inside MLX


class Stopped(Exception):
    """The process was asked to stop before it had finished starting."""


class Role(Protocol):
    """What rank 0, and what every other rank, adds to the common life of a rank."""

    async def start(self) -> None:
        """Open the ports.  Raises PortInUse or BindError."""

    async def serve(self, engine: Engine | None, client: CoordinatorClient) -> None:
        """The weights are loaded.  Returns once this rank has nothing more to prepare."""

    async def stop(self, grace: int) -> None:
        """Close the ports; open responses get `grace` seconds.  What fails in one part skips no other."""


class RankProcess:
    """Runs until it is asked to stop or breaks."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._tls = OwnTls(settings.config.tls)
        self._tunnel = open_tunnel(settings.config, os.environ, self._tls)
        self.rank = Rank(settings.config, self._tls, self._tunnel)
        self.reporter = Reporter(self.rank)
        self.started = time.monotonic()
        self._announcer = Announcer(settings.config.launcher.supervised, self._step)
        self._stop = asyncio.Event()
        self._runtime = RuntimeSettings(settings, _obey)
        self._role: Role | None = None
        self._client: CoordinatorClient | None = None
        self._heartbeats: asyncio.Task[NoReturn] | None = None
        self._watchdog: asyncio.Task[NoReturn] | None = None
        self._tunnel_watch: asyncio.Task[NoReturn] | None = None
        self._resources: asyncio.Task[NoReturn] | None = None
        self._shipping: asyncio.Task[NoReturn] | None = None
        self._tracing: Tracing | None = None

    async def run(self) -> None:
        """Live.  Returns after an orderly stop; raises what ended the rank otherwise."""
        descriptors.raise_limit()
        descriptors.answer_exhaustion_calmly(asyncio.get_running_loop())
        for number in STOP_SIGNALS:
            signal.signal(number, signal.SIG_DFL)  # Python's handlers can't run while it joins
        signal.setitimer(signal.ITIMER_REAL, JOIN_SECONDS)  # SIGALRM; launcher.outcome explains it
        self._announcer.tell()
        self.rank.start()
        progress = asyncio.create_task(self._show_progress())
        orderly = False
        try:
            with contextlib.suppress(Stopped):
                await self._start_up()
                progress.cancel()
                await self._unless_stopped(asyncio.Event().wait())
            orderly = True
        finally:
            progress.cancel()
            await self._shut_down(orderly)

    async def _start_up(self) -> None:
        await _follow(self.rank.joined)
        if self._tunnel is not None:
            self._tunnel_watch = asyncio.create_task(self._watch_tunnel(self._tunnel))
            self._tunnel_watch.add_done_callback(_heed)
        signal.setitimer(signal.ITIMER_REAL, 0)
        self._watch_signals()
        self._watch_parent()
        placement = await self._unless_stopped(_follow(self.rank.placed))
        launch_files.remove()  # they have been read
        meeting = placement.meeting
        logs.bind_rank(meeting.node.name, meeting.rank, meeting.epoch)
        self._role = self._make_role(placement)
        await self._open_ports(self._role)
        # Earlier the coordinator may not be there, and gRPC lets a second pass before it calls again.
        await self._unless_stopped(_follow(self.rank.opened))
        target = self.settings.config.coordinator.reached_at(meeting.hosts[0])
        network = self.settings.config.network
        tls = self._tls(meeting.node.name)
        self._client = CoordinatorClient(
            target,
            self.settings.config.coordinator.port,
            network.rpc_timeout,
            network.retry_initial,
            network.retry_max,
            self._credential(),
            None if tls is None else ClientTls(tls, meeting.nodes[0].name),
        )
        registration = registration_of(placement, self.settings.config.model.name)
        policy = await self._unless_stopped(self._client.register(registration, LOADED_DEADLINE))
        self._heartbeats = asyncio.create_task(
            self._client.run_heartbeats(
                registration, policy, self.reporter, self._on_config, self._timelines(registration)
            )
        )
        self._heartbeats.add_done_callback(_heed)
        shipper = LogShipper(registration, logs.shipping(), self._client.ship_logs)
        self._shipping = asyncio.create_task(shipper.run())
        engine = await self._unless_stopped(_follow(self.rank.loaded))
        if self._tracing is not None and self.rank.worker is not None:
            self.rank.worker.observer = self._tracing.stage
        self._resources = asyncio.create_task(self._watch_resources(placement))
        self._watchdog = asyncio.create_task(self._watch_engine())
        self._watchdog.add_done_callback(_heed)
        self._client.report_soon()
        garbage.settle()
        await self._unless_stopped(self._role.serve(engine, self._client))
        self.reporter.serving = True
        self._client.report_soon()
        self._announcer.tell()

    def _credential(self) -> Credential | None:
        """By which rank 0 knows this rank.  Raises StartupFailed."""
        try:
            return cluster_credential(self.settings.config.access)
        except AccessError as error:
            raise StartupFailed(str(error)) from error

    async def _open_ports(self, role: Role) -> None:
        try:
            self._tracing = self._make_tracing()
            await role.start()
        except (BindError, ModelError, StartupFailed) as error:
            problem = str(error)
            if isinstance(error, BindError) and self.rank.placed.done():
                problem = port_problem(self.settings.config, self.rank.placed.result(), error)
            self.rank.ports_opened(problem)
            await self._unless_stopped(_follow(self.rank.loaded))  # raises what all ranks are told
            raise
        self.rank.ports_opened()

    def _make_tracing(self) -> Tracing | None:
        """Raises StartupFailed if traces are wanted and can't be made."""
        endpoint = self.settings.config.observe.otlp_endpoint
        if endpoint is None:
            return None
        try:
            from server.observe.tracing import Tracing
        except ImportError as error:
            raise StartupFailed(
                f"observe.otlp_endpoint = {endpoint}: {error.name} is missing;"
                " the extra otel installs it (pip install '.[otel]')."
            ) from error
        meeting = self.rank.placed.result().meeting
        tracing = Tracing(
            endpoint, meeting.node.name, meeting.rank, meeting.epoch, version("mlx-cluster")
        )
        if meeting.rank == 0:
            leader = cast("Leader", self._role)
            leader.observatory.book.tracer = tracing.requests
        return tracing

    async def _watch_resources(self, placement: Placement) -> NoReturn:
        monitor = ResourceMonitor(placement.checkpoint.path)
        self.reporter.resources = lambda: monitor.latest
        await monitor.run(self.settings.config.observe.resource_interval)

    def _make_role(self, placement: Placement) -> Role:
        layers = placement.layers
        view = NodeView(
            rank=placement.meeting.rank,
            node=placement.meeting.node.name,
            size=placement.meeting.size,
            model=self.settings.config.model.name,
            version=version("mlx-cluster"),
            layers=lambda: (layers.start, layers.end - 1),
            report=self.reporter,
            uptime_s=self.uptime,
        )
        tls = self._tls(view.node)
        if placement.meeting.rank == 0:
            # Nobody else needs the API and what it imports: every start of a rank keeps clients waiting.
            from server.leader import Leader

            return Leader(self.settings, placement, view, tls)
        return Follower(self.settings, placement, view, tls)

    def _timelines(self, registration: Registration) -> TimelineRecorder:
        assert self._client is not None
        client = self._client
        return TimelineRecorder(
            registration,
            lambda: self.rank.worker,
            client.send_timeline,
            lambda: client.clock.seconds,
        )

    def uptime(self) -> float:
        """Seconds since the process was started."""
        return time.monotonic() - self.started

    def _on_config(self, revision: int, changes: Mapping[str, str]) -> None:
        """The coordinator has changed dynamic settings; rank 0 has applied them already."""
        self._runtime.apply(changes)
        log.info("settings changed", revision=revision, **_as_fields(changes))

    async def _watch_engine(self) -> NoReturn:
        """Raises LinkTimeout when a step does not end: a collective that hangs can't be interrupted."""
        worker, deadline = self.rank.worker, self.settings.config.network.step_timeout
        assert worker is not None
        while True:
            await asyncio.sleep(min(deadline / 4, WATCHDOG_SECONDS))
            hung_at = worker.stats.hung_at
            if hung_at is not None and time.monotonic() > hung_at:
                raise LinkTimeout(
                    f"a step has not ended for {deadline:g} s (network.step_timeout);"
                    " a neighbour may hang"
                )

    async def _watch_tunnel(self, tunnel: Tunnel) -> NoReturn:
        """Raises LinkClosed when it breaks."""
        try:
            await tunnel.watch()
        except LinkClosed:
            # A neighbour that leaves in order has said so on the frame link.
            await asyncio.wait({_follow(self.rank.ended)}, timeout=FAREWELL_SECONDS)
            raise

    async def _shut_down(self, orderly: bool) -> None:
        """Close everything, each part within its time; `orderly`: together with the other ranks."""
        self.reporter.draining = True
        try:
            self.rank.stop()
            await self._close_ports()
        finally:
            await self._end_rank(orderly)

    async def _close_ports(self) -> None:
        if self._role is not None:
            await close_all({"ports": self._role.stop(HTTP_GRACE_SECONDS)}, PORTS_SECONDS)
        for task in (
            self._heartbeats,
            self._watchdog,
            self._tunnel_watch,
            self._resources,
            self._shipping,
        ):
            if task is not None:
                task.cancel()
        last: dict[str, Awaitable[None]] = {}
        if self._client is not None:
            last["control plane"] = self._client.close()
        if self._tracing is not None:
            last["traces"] = asyncio.to_thread(self._tracing.close)
        await close_all(last, CONTROL_SECONDS)

    async def _end_rank(self, orderly: bool) -> None:
        """Let a ring at work end in order; where a neighbour does not answer, or none works yet, end alone."""
        ended = _follow(self.rank.ended)
        if orderly and self.rank.phase is Phase.READY:
            await asyncio.wait({ended}, timeout=GOODBYE_SECONDS)
        if not ended.done():
            self.rank.abort()
            await asyncio.wait({ended}, timeout=ABORT_SECONDS)
        if self._tunnel is not None:
            self._tunnel.close()

    async def _unless_stopped(self, work: Awaitable[T]) -> T:
        """The result of `work`; raises Stopped if asked to stop meanwhile, or what broke in this rank."""
        task = asyncio.ensure_future(work)
        task.add_done_callback(_heed)
        stop = asyncio.ensure_future(self._stop.wait())
        vital = [
            _follow(self.rank.ended),
            self._watchdog,
            self._heartbeats,
            self._tunnel_watch,
        ]
        parts = [part for part in vital if part is not None]
        await asyncio.wait({task, stop, *parts}, return_when=asyncio.FIRST_COMPLETED)
        stop.cancel()
        if task.done():
            return task.result()
        task.cancel()
        for part in parts:
            if part.done() and not self._stop.is_set():
                part.result()
        raise Stopped

    async def _show_progress(self) -> None:
        """A line a second while something takes longer."""
        shown: tuple[str, int] | None = None
        while self.rank.phase in (Phase.JOINING, Phase.LOADING):
            await asyncio.sleep(PROGRESS_SECONDS)
            self._announcer.tell()
            progress = (self.rank.activity, int(100 * self.rank.load_progress))
            if progress != shown:
                shown = progress
                log.info(progress[0], progress=f"{progress[1]}%")

    def _step(self) -> Step:
        return Step(self.rank.advances, int(100 * self.rank.load_progress), self.rank.activity)

    def _watch_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number in STOP_SIGNALS:
            loop.add_signal_handler(number, self._stop.set)

    def _watch_parent(self) -> None:
        """Standard input is held open by mlx.launch: when it ends, mlx.launch is gone, whatever killed it."""
        if "MLX_HOSTFILE" not in os.environ or not stat.S_ISFIFO(os.fstat(0).st_mode):
            return

        def readable() -> None:
            if not os.read(0, 4096):
                asyncio.get_running_loop().remove_reader(0)
                self._stop.set()

        asyncio.get_running_loop().add_reader(0, readable)


def _obey(settings: Settings) -> None:
    """Let changed settings take effect on every rank; see also Leader."""
    logs.set_level(settings.config.observe.log_level)


def _as_fields(changes: Mapping[str, str]) -> dict[str, str]:
    return {key.replace(".", "_"): value for key, value in changes.items()}


def _follow(future: Future[T]) -> asyncio.Future[T]:
    """A future of the engine thread in this loop."""
    followed = asyncio.wrap_future(future)
    followed.add_done_callback(_heed)
    return followed


def _heed(done: asyncio.Future[Any]) -> None:
    """Several may break at once and only one be asked why: asyncio need not complain of the others."""
    if not done.cancelled():
        done.exception()
