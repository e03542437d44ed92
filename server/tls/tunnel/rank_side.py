"""A rank's side of its tunnel: started before MLX joins, put in place of MLX's sockets, and watched."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NoReturn

from config import Config
from pipeline.errors import LinkClosed, LinkTimeout, StartFailed
from server import launch_files
from server.tls.contexts import ClusterTls
from server.tls.tunnel.messages import Lines, Plan, read_word, write_plan

LOCAL = "127.0.0.1"
BUFFER = 4 << 20  # bytes of a socket pair, as far as the system allows
PATIENCE = 5.0  # seconds that the tunnel may answer later than its own deadline


class Tunnel:
    """See pipeline.ring.RingTunnel.  `close` ends the process, and so does the end of this one."""

    def __init__(
        self,
        tls: ClusterTls,
        addresses: Sequence[Sequence[str]],
        rank: int,
        names: Sequence[str],
        timeout: float,
    ) -> None:
        """addresses: of all ranks, as in MLX_HOSTFILE; names: of their nodes; timeout: until all are there.

        Raises OSError.
        """
        size = len(addresses)
        self._timeout, self._rank = timeout, rank
        self._after = (rank + 1) % size
        own, following = addresses[rank], addresses[self._after]
        self._open = ExitStack()
        self._inbound = [self._pair() for _ in own]
        self._outbound = [self._pair() for _ in following]
        # MLX binds with SO_REUSEPORT: a port that is bound so, and not listened on, is kept for it alone.
        self._reserved = [self._bound(listens=False) for _ in own]
        # The kernel accepts for us; nobody has to be at the other end.
        self._called = [self._bound(listens=True) for _ in following]
        control, theirs = self._ends()
        self._control = control
        plan = Plan(
            certificate=str(tls.files.certificate),
            key=str(tls.files.key),
            ca=str(tls.ca),
            before=names[(rank - 1) % size],
            after=names[self._after],
            listen=tuple(own),
            call=tuple(following),
            inbound=tuple(far.fileno() for _, far in self._inbound),
            outbound=tuple(far.fileno() for _, far in self._outbound),
            local=tuple(_port(sock) for sock in self._reserved),
            timeout=timeout,
        )
        self._process = _start(theirs, plan)
        write_plan(control, plan)
        for sock in (theirs, *(far for _, far in self._inbound + self._outbound)):
            sock.close()
        self._lines = Lines(control)
        self.hostfile = self._write_hostfile(size)

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    def take_over(self) -> None:
        """Put the tunnel in place of MLX's sockets, which have been connected and are idle.

        Returns when both neighbours are there.  Raises LinkClosed, LinkTimeout, StartFailed.
        """
        here = _connected_sockets()
        for reserved, (near, _) in zip(self._reserved, self._inbound, strict=True):
            _replace(here, (_port(reserved), None), near)
        for called, (near, _) in zip(self._called, self._outbound, strict=True):
            _replace(here, (None, _port(called)), near)
        for sock in (
            *self._reserved,
            *self._called,
            *(n for n, _ in self._inbound + self._outbound),
        ):
            sock.close()
        self.hostfile.unlink()
        try:
            line = self._lines.next(self._timeout + PATIENCE)
        except TimeoutError as error:
            raise LinkTimeout(f"{self._name()} did not answer") from error
        if not line:
            raise LinkClosed(f"{self._name()} has ended")
        what, why = read_word(line)
        if what != "joined":
            raise (StartFailed if what == "unusable" else LinkClosed)(f"tls.tensors: {why}")

    async def watch(self) -> NoReturn:
        """Raises LinkClosed when the tunnel, or a connection in it, has ended."""
        self._control.setblocking(False)
        said = self._lines.rest()
        if not said:  # short, so that it comes as a whole
            said = await asyncio.get_running_loop().sock_recv(self._control, 1 << 16)
        if not said:
            raise LinkClosed(f"{self._name()} has ended")
        raise LinkClosed(read_word(said.splitlines()[0])[1])

    def close(self) -> None:
        """End it."""
        with self._open:
            with contextlib.suppress(OSError):
                self._control.shutdown(socket.SHUT_RDWR)
            try:
                self._process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()

    def _name(self) -> str:
        return f"the TLS tunnel of rank {self._rank} (process {self._process.pid})"

    def _pair(self) -> tuple[socket.socket, socket.socket]:
        near, far = self._ends()
        for sock in (near, far):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER)
        near.setblocking(False)  # as MLX's own
        return near, far

    def _ends(self) -> tuple[socket.socket, socket.socket]:
        near, far = socket.socketpair()
        self._open.enter_context(near)
        self._open.enter_context(far)
        return near, far

    def _bound(self, listens: bool) -> socket.socket:
        sock = self._open.enter_context(socket.socket())
        if not listens:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.bind((LOCAL, 0))
        if listens:
            sock.listen(1)
        return sock

    def _write_hostfile(self, size: int) -> Path:
        """By which MLX finds the local ends; of the other ranks it only needs the number."""
        nobody = [f"{LOCAL}:1"] * len(self._reserved)
        entries = [nobody] * size
        entries[self._rank] = [f"{LOCAL}:{_port(sock)}" for sock in self._reserved]
        entries[self._after] = [f"{LOCAL}:{_port(sock)}" for sock in self._called]
        handle, name = tempfile.mkstemp(
            prefix="ring-", suffix=".json", dir=launch_files.own_folder()
        )
        with os.fdopen(handle, "w") as file:
            json.dump(entries, file)
        return Path(name)


def open_tunnel(
    config: Config, environ: Mapping[str, str], tls_of: Callable[[str], ClusterTls | None]
) -> Tunnel | None:
    """The tunnel of this rank, as mlx.launch has started it; None where there is nothing to carry.

    Raises StartFailed where the ranks are connected by something else than MLX's ring.
    """
    if not config.tls.tensors:
        return None
    path = environ.get("MLX_HOSTFILE")
    other = {"MLX_IBV_DEVICES", "OMPI_COMM_WORLD_SIZE"} & environ.keys()
    if path is None or other:
        if not other:
            return None  # alone
        raise StartFailed(
            "tls.tensors = true: only the connections of MLX's ring can be carried by TLS, and these ranks "
            "are started by another backend; start them with --backend ring."
        )
    text = Path(path).read_text(encoding="utf-8").strip()
    addresses = json.loads(text) if text else []
    if len(addresses) < 2:
        return None
    rank = int(environ["MLX_RANK"])
    names = [node.name for node in config.nodes_of(len(addresses))]
    tls = tls_of(names[rank])
    assert tls is not None, "tls.tensors needs tls.cluster.enabled"
    try:
        return Tunnel(tls, addresses, rank, names, config.network.connect_timeout)
    except OSError as error:
        raise StartFailed(f"tls.tensors = true: {error}") from error


def _start(control: socket.socket, plan: Plan) -> subprocess.Popen[bytes]:
    # Numerics have no place in it, and would be loaded first.
    environ = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    return subprocess.Popen(
        [sys.executable, "-m", "server.tls.tunnel", str(control.fileno())],
        env=environ,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        pass_fds=[control.fileno(), *plan.inbound, *plan.outbound],
    )


def _port(sock: socket.socket) -> int:
    port: int = sock.getsockname()[1]
    return port


Ends = tuple[int | None, int | None]
"""Own port and the peer's, of a connection to this machine; None: any."""


def _connected_sockets() -> dict[int, tuple[int, int]]:
    """By descriptor: own port and the peer's, of this process's TCP connections on 127.0.0.1."""
    found = {}
    for name in os.listdir("/dev/fd"):
        descriptor = int(name)
        with contextlib.suppress(OSError):  # gone already, or not connected
            if not stat.S_ISSOCK(os.fstat(descriptor).st_mode):
                continue
            with socket.socket(fileno=os.dup(descriptor)) as sock:
                own, peer = sock.getsockname(), sock.getpeername()
                if sock.family == socket.AF_INET and own[0] == peer[0] == LOCAL:
                    found[descriptor] = (own[1], peer[1])
    return found


def _replace(here: Mapping[int, tuple[int, int]], ends: Ends, by: socket.socket) -> None:
    """Put `by` in the place of the one connection with these ends: MLX goes on with the same descriptor."""
    own, peer = ends
    matching = [
        descriptor
        for descriptor, ports in here.items()
        if own in (None, ports[0]) and peer in (None, ports[1])
    ]
    if len(matching) != 1:
        raise StartFailed(
            f"tls.tensors = true: MLX has {len(matching)} connections with the port {own or peer}, "
            "where one was expected; this version of MLX joins in another way."
        )
    os.dup2(by.fileno(), matching[0], inheritable=False)
