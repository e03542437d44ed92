"""The gateway port, held by the launcher."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace

import httpx
import structlog
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.routing import BaseRoute, Mount, Route
from starlette.types import Receive, Scope, Send

from config import Config
from launcher.door import LeaderAddress
from launcher.frontdoor.events import LauncherEvents
from launcher.frontdoor.gate import Gate, GateLimits
from launcher.frontdoor.leadership import Backoff, Leadership
from launcher.frontdoor.passing import Passing
from launcher.frontdoor.status import StatusRoutes
from launcher.frontdoor.upstream import Upstream
from pipeline.errors import PipelineError
from server.access.errors import Refusal
from server.access.middleware import Guard
from server.access.pages import LOOKED_AT
from server.access.roles import RouteTable
from server.access.startup import protect_front_door
from server.api.body import BodyReader
from server.api.errors import ApiError, respond
from server.api.outer import guarded, outermost
from server.dashboard import dashboard_routes
from server.node.forward import Forwarder, ForwardLimits
from server.node.serve import HttpServers, Listener, start_servers
from server.tls.contexts import launcher_tls
from server.tls.gateway import GatewayTls, gateway_tls

HANDLED = (ApiError, Refusal, PipelineError, HTTPException, ClientDisconnect, Exception)

PATIENCE_S = 15.0  # for somebody to lead, of requests that make no tokens
SPARE_CONNECTIONS = 64  # to rank 0, for requests that make no tokens

log = structlog.get_logger(__name__)


class FrontDoor:
    """See launcher.door.Door."""

    def __init__(
        self,
        config: Config,
        admin_routes: Sequence[BaseRoute] = (),
        status: Callable[[], dict[str, object]] = dict,
        switch_model: Callable[[str], None] = lambda model: None,
        neighbours: Sequence[str] = (),
        document: Callable[[], dict[str, object]] | None = None,
    ) -> None:
        """admin_routes: tried first.  status: what the launcher adds to /health and /ready.

        switch_model: called with a configured model that a request wants and that is not loaded.
        neighbours: hosts that pass requests on and are believed for whom.
        document: all of the launcher's status, for those who watch; None: they are shown what rank 0 has.
        """
        self._config, self._admin_routes, self._neighbours = config, admin_routes, neighbours
        gateway = config.api_gateway
        self._forward_limits = ForwardLimits(
            gateway.max_body_bytes,
            max_requests=gateway.max_concurrent_requests + SPARE_CONNECTIONS,
            keepalive=config.network.keepalive,
        )
        self._tls = launcher_tls(config.tls)
        self._upstream = Upstream(self._forward_limits, self._tls)
        self._leadership = Leadership()
        bodies = BodyReader(gateway.max_body_bytes)
        self.gate = Gate(
            self._leadership,
            self._upstream,
            bodies,
            GateLimits(
                timeout=gateway.timeout,
                waiting=gateway.max_concurrent_requests,
                first_pause=config.network.retry_initial,
                longest_pause=config.network.retry_max,
            ),
            switch_model,
        )
        self.passing = Passing(
            self._leadership,
            bodies,
            gateway.max_concurrent_requests,
            min(PATIENCE_S, gateway.timeout),
            self._backoff,
        )
        self._status = StatusRoutes(self._leadership, self._ask_leader, status)
        self._events = None if document is None else self._events_of(document)
        self._rules = RouteTable()
        self._servers: HttpServers | None = None
        self._gateway_tls: GatewayTls | None = None
        self._watch: asyncio.Task[object] | None = None

    @property
    def address(self) -> tuple[str, int]:
        """Where clients connect, once it is started."""
        assert self._servers is not None, "the front door is open"
        return self._servers.addresses["gateway"]

    async def start(self) -> None:
        """See launcher.door.Door."""
        gateway = self._config.api_gateway
        self._gateway_tls = gateway_tls(self._config.tls)
        shown = None if self._gateway_tls is None else self._gateway_tls.context
        app = self.app()
        self._servers = await start_servers(
            [Listener("gateway", app, gateway.host, gateway.port, shown)]
        )
        if self._gateway_tls is not None:
            self._watch = asyncio.create_task(self._gateway_tls.watch())

    def app(self) -> Starlette:
        """The application of the gateway port."""
        gateway = self._config.api_gateway
        routes = [
            *self._admin_routes,
            *self._status.routes(),
            *(self._events.routes() if self._events is not None else ()),
            *dashboard_routes(launcher=bool(self._admin_routes)),
            *self.gate.responses.routes(),
            Mount("/", app=self._pass),
        ]
        app = Starlette(
            routes=routes,
            middleware=[*outermost(gateway.cors_origins), *guarded(self._guard())],
            exception_handlers=dict.fromkeys(HANDLED, respond),
        )
        app.router.redirect_slashes = False
        app.state.responses = self.gate.responses.store
        return app

    async def stop(self, grace: float) -> None:
        """See launcher.door.Door."""
        if self._watch is not None:
            self._watch.cancel()
        if self._events is not None:
            self._events.end()
        if self._servers is not None:
            await self._servers.stop(int(grace))
        await self.passing.close(max(1.0, grace))
        await self._upstream.close()
        if self._events is not None:
            await self._events.close()

    def leader_changed(
        self, address: LeaderAddress | None, reason: str = "", permanent: bool = False
    ) -> None:
        """See launcher.door.Door."""
        if address != self._leadership.address:
            self.passing.use(None if address is None else self._forwarder_to(address))
        self._leadership.change(address, reason, permanent)
        self._tell()

    def drain(self, on: bool) -> None:
        """See launcher.door.Door."""
        self.gate.draining = on
        self._tell()

    def in_flight(self) -> int:
        """See launcher.door.Door."""
        return self.gate.in_flight

    def stats(self) -> dict[str, object]:
        """See launcher.door.Door."""
        return {
            "in_flight": self.gate.in_flight,
            "waiting": self.gate.waiting,
            "resumed": self.gate.resumed,
            "draining": self.gate.draining,
        }

    def _tell(self) -> None:
        if self._events is not None:
            self._events.changed()

    def _events_of(self, document: Callable[[], dict[str, object]]) -> LauncherEvents:
        upstream = Upstream(self._forward_limits, self._tls)
        return LauncherEvents(document, self._leadership, upstream, self._backoff)

    def _backoff(self) -> Backoff:
        network = self._config.network
        return Backoff(network.retry_initial, network.retry_max)

    async def _pass(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Anything that is not answered here."""
        if scope["type"] == "http":
            rule = self._rules.find(scope["method"], scope["path"])
            inference = rule is not None and rule.inference
            await (self.gate if inference else self.passing)(scope, receive, send)
        else:
            await send({"type": "websocket.close", "code": 1000})

    def _guard(self) -> Guard:
        """Who may come in; what is answered here is counted here.  Raises AccessError."""
        guard, notice = protect_front_door(self._config, self._neighbours)
        log.info(notice)
        here = [*self._admin_routes, *self.gate.responses.routes()]
        paths = frozenset(route.path for route in here if isinstance(route, Route))
        return replace(guard, answered=paths)

    def _forwarder_to(self, leader: LeaderAddress) -> Forwarder:
        scheme = "http" if self._tls is None else "https"
        url = httpx.URL(scheme=scheme, host=leader.host, port=leader.port)
        return Forwarder(
            url, self._forward_limits, self._upstream.tls_of(leader.node), withheld=LOOKED_AT
        )

    async def _ask_leader(self, path: str, headers: dict[str, str]) -> httpx.Response | None:
        """A short answer of rank 0; None if it gives none."""
        leader = self._leadership.address
        return None if leader is None else await self._upstream.get(leader, path, headers)
