"""Several HTTP servers in one asyncio loop, started and stopped together."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import uvicorn
from starlette.types import ASGIApp

from server import descriptors
from server.node.connection import MAX_HEADER_BYTES, Connection, ConnectionLimits, LimitedConfig
from server.rpc.listen import bind

# After the streams are cancelled: handlers that clean up, and lifespans.
CLEANUP_S = 5.0

# Connections that the kernel keeps waiting.  asyncio tries this many accepts in a row, also when no descriptor
# is left, so it is not uvicorn's 2048.
BACKLOG = 256


DATE_S = 1.0  # seconds between two looks at the clock for the header `date`

HANDSHAKE_S = 10.0  # seconds for the handshake of TLS, before which a connection holds no place

# asyncio's own time for a peer to answer the end of TLS, 30 s, is longer than a process may take to stop.
_TLS_TIMES: dict[str, Any] = {"ssl_handshake_timeout": HANDSHAKE_S}
if sys.version_info >= (3, 11):
    _TLS_TIMES["ssl_shutdown_timeout"] = 1.0


class StartupFailed(Exception):
    """An application could not start."""


@dataclass(frozen=True)
class Listener:
    """An application and where it answers; port 0 takes a free one.

    tls: of the port; a certificate that is loaded into it later counts for later connections.
    """

    name: str
    app: ASGIApp
    host: str
    port: int
    tls: ssl.SSLContext | None = None


class HttpServers:
    """Running servers; made by `start_servers`."""

    def __init__(self, servers: Sequence[_Server], addresses: dict[str, tuple[str, int]]) -> None:
        self.addresses = addresses  # host and port, by the listener's name
        self._servers = servers
        self._tasks: set[asyncio.Task[None]] = set()

    async def _start(self) -> None:
        for server in self._servers:
            task = asyncio.create_task(server.run_until_stopped())
            self._tasks.add(task)
            started = asyncio.create_task(server.has_started.wait())
            await asyncio.wait({task, started}, return_when=asyncio.FIRST_COMPLETED)
            started.cancel()
            if task.done():
                await self.stop(0)
                task.result()

    async def wait(self) -> None:
        """Return when the servers have been stopped; raise what broke one of them."""
        done, _ = await asyncio.wait(self._tasks, return_when=asyncio.FIRST_EXCEPTION)
        for task in done:
            task.result()

    async def stop(self, grace_s: int) -> None:
        """Take no more connections, let open responses end for `grace_s` seconds, then cancel them.

        Returns after at most about `grace_s` + CLEANUP_S seconds.
        """
        for server in self._servers:
            server.stop(grace_s)
        if not self._tasks:
            return
        _, stuck = await asyncio.wait(self._tasks, timeout=grace_s + CLEANUP_S)
        for task in stuck:
            task.cancel()
        if stuck:
            await asyncio.wait(stuck, timeout=CLEANUP_S)


async def start_servers(
    listeners: Sequence[Listener], limits: ConnectionLimits | None = None
) -> HttpServers:
    """Bind every port, then start every application; an application on several ports starts once.

    limits: of each application; left out, as many connections as half of the process's descriptors allow.

    Raises PortInUse or BindError before anything has started, StartupFailed when an application
    does not come up; nothing is left running or bound then.
    """
    sockets: dict[str, socket.socket] = {}
    with contextlib.ExitStack() as on_failure:
        for listener in listeners:
            bound = bind(listener.host, listener.port)
            on_failure.callback(bound.close)
            sockets[listener.name] = bound
        addresses = {name: bound.getsockname()[:2] for name, bound in sockets.items()}
        servers = HttpServers(_group(listeners, sockets, limits), addresses)
        await servers._start()
        on_failure.pop_all()
    return servers


def _group(
    listeners: Sequence[Listener],
    sockets: dict[str, socket.socket],
    limits: ConnectionLimits | None,
) -> list[_Server]:
    """One server per application, so that the lifespan of an application runs once."""
    groups: dict[int, _Server] = {}
    limits = limits or affordable(len({id(listener.app) for listener in listeners}))
    for listener in listeners:
        server = groups.setdefault(id(listener.app), _Server(listener, limits))
        server.sockets.append(sockets[listener.name])
        if listener.tls is not None:
            server.contexts[sockets[listener.name]] = listener.tls
        server.names.append(listener.name)
    return list(groups.values())


def affordable(apps: int) -> ConnectionLimits:
    """The limits of each of `apps` applications; the other half of the descriptors is for everything else."""
    limits = ConnectionLimits()
    share = descriptors.limit() // (2 * apps)
    return replace(limits, connections=min(limits.connections, share))


class _Server(uvicorn.Server):
    """A uvicorn server that leaves signals to the process and says when it has started."""

    def __init__(self, listener: Listener, limits: ConnectionLimits) -> None:
        config = LimitedConfig(
            listener.app,
            http=Connection,
            log_config=None,
            access_log=False,
            lifespan="on",
            ws="none",
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=limits.keep_alive_s,
            backlog=BACKLOG,
            h11_max_incomplete_event_size=MAX_HEADER_BYTES,
        )
        config.limits = limits
        self.limited = config
        super().__init__(config)
        self.sockets: list[socket.socket] = []
        self.contexts: dict[socket.socket, ssl.SSLContext] = {}  # of those with TLS
        self.names: list[str] = []
        self.has_started = asyncio.Event()
        self._asked_to_stop = asyncio.Event()

    async def run_until_stopped(self) -> None:
        await self.serve(sockets=self.sockets)

    def stop(self, grace_s: int) -> None:
        self.config.timeout_graceful_shutdown = grace_s
        self.should_exit = True
        self._asked_to_stop.set()

    async def main_loop(self) -> None:
        """uvicorn's own looks ten times a second whether it is to stop: most of what an idle rank would do."""
        while not await self.on_tick(0):  # 0: with the date of headers, which has whole seconds
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._asked_to_stop.wait(), DATE_S)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        every = sockets or []
        try:
            await super().startup(sockets=[sock for sock in every if sock not in self.contexts])
        except SystemExit as failure:
            # uvicorn's way to report a failed lifespan; it must not end the loop of all servers.
            raise StartupFailed(f"{' and '.join(self.names)} could not start") from failure
        for sock, context in self.contexts.items():
            await self._serve_tls(sock, context)
        self.has_started.set()

    async def _serve_tls(self, sock: socket.socket, context: ssl.SSLContext) -> None:
        """As uvicorn does for all sockets alike, which here differ."""

        def connection() -> Connection:
            return Connection(self.limited, self.server_state, self.lifespan.state)

        loop = asyncio.get_running_loop()
        server = await loop.create_server(
            connection, sock=sock, ssl=context, backlog=BACKLOG, **_TLS_TIMES
        )
        self.servers.append(server)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield
