"""A rank 0 over a scripted engine in this process, whose port can be killed and opened again."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass, field

from starlette.types import ASGIApp

from launcher.door import LeaderAddress
from pipeline.request import GenerationRequest
from server.api.app import create_app
from server.api.service import Service
from server.node.serve import HttpServers, Listener, start_servers
from server.tls.contexts import ClusterTls
from tests.server.api.fakes import make_service
from tests.server.replay.engine import PureEngine


@dataclass
class Steered(PureEngine):
    """Stops at a gate before chosen tokens; what the test sets it to raise is raised there."""

    stops_at: Callable[[GenerationRequest, int], bool] = lambda request, position: False
    reached: asyncio.Event = field(default_factory=asyncio.Event)
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    error: Exception | None = None

    async def before(self, request: GenerationRequest, position: int) -> None:
        if self.stops_at(request, position):
            self.reached.set()
            await self.gate.wait()
            if self.error is not None:
                raise self.error


class Rank0:
    """One life of it."""

    def __init__(
        self,
        engine: Steered | None = None,
        readiness: str | None = None,
        tls: ClusterTls | None = None,
    ) -> None:
        self._tls = tls
        self.engine = engine or Steered(random.Random(1))
        self.readiness = readiness
        self.service: Service = make_service(self.engine)  # type: ignore[arg-type]
        self.service.readiness = lambda: self.readiness
        self._servers: HttpServers | None = None

    async def start(
        self, epoch: int = 1, make_app: Callable[[Service], ASGIApp] = create_app
    ) -> LeaderAddress:
        app = make_app(self.service)
        self._servers = await start_servers(
            [
                Listener(
                    "inference",
                    app,
                    "127.0.0.1",
                    0,
                    None if self._tls is None else self._tls.server,
                )
            ]
        )
        host, port = self._servers.addresses["inference"]
        return LeaderAddress(host, port, epoch, self._tls.own.name if self._tls else "")

    async def kill(self) -> None:
        """Every connection breaks, as when the process is killed."""
        assert self._servers is not None
        for server in self._servers._servers:
            for connection in list(server.server_state.connections):
                connection.transport.abort()
        await self._servers.stop(0)

    async def stop(self) -> None:
        assert self._servers is not None
        await self._servers.stop(0)
