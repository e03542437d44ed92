"""What every rank but the first adds: an inference port that forwards to rank 0, and a health port."""

from __future__ import annotations

from config import Settings
from pipeline.engine import Engine
from pipeline.placement import Placement
from server.access.errors import AccessError
from server.access.middleware import Guard
from server.access.startup import open_access
from server.node.forward import ForwardLimits, UpstreamTls, forward_app
from server.node.health import NodeView, health_app
from server.node.serve import HttpServers, Listener, StartupFailed, start_servers
from server.rpc.client import CoordinatorClient
from server.tls.contexts import ClusterTls
from server.tls.identity import node


class Follower:
    """See server.process.Role."""

    def __init__(
        self, settings: Settings, placement: Placement, view: NodeView, tls: ClusterTls | None
    ) -> None:
        meeting = placement.meeting
        self._tls = None if tls is None else tls.server
        self._settings, self._view, self._hosts = settings, view, meeting.hosts
        self._host, self._ports = meeting.host, meeting.node.ports
        config = settings.config
        limits = ForwardLimits(
            config.api_gateway.max_body_bytes, keepalive=config.network.keepalive
        )
        leader = meeting.nodes[0]
        upstream = None if tls is None else UpstreamTls(tls.client, node(leader.name).dns_name)
        self._forward = forward_app(meeting.hosts[0], leader.ports.inference, limits, upstream)
        self._servers: HttpServers | None = None

    async def start(self) -> None:
        """Open both ports.  Raises StartupFailed if strangers could come in and nobody said that they may."""
        try:
            access = open_access(self._settings.config.access, [self._host], self._hosts)
        except AccessError as error:
            raise StartupFailed(str(error)) from error
        health = health_app(self._view, Guard(access.policy))
        self._servers = await start_servers(
            [
                Listener("inference", self._forward, self._host, self._ports.inference, self._tls),
                Listener("health", health, self._host, self._ports.health, self._tls),
            ]
        )

    async def serve(self, engine: Engine | None, client: CoordinatorClient) -> None:
        """Nothing more to do: rank 0 serves."""

    async def stop(self, grace: int) -> None:
        """Close the ports."""
        if self._servers is not None:
            await self._servers.stop(grace)
