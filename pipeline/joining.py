"""How the ranks connect their frame links: each calls the next one and waits for the one before."""

from __future__ import annotations

import contextlib
import select
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import structlog

from config.keepalive import KeepAlive
from pipeline import frames
from pipeline.errors import FrameError, LinkClosed, LinkTimeout
from pipeline.frames import Hello, Welcome
from pipeline.link import Connection, Links, Peer
from pipeline.security import LinkSecurity

log = structlog.get_logger()

RETRY_SECONDS = 0.1
MAX_CALLERS = 32
"""Connections that have not yet said who they are; beyond it the oldest is dropped."""


def listen(host: str, port: int) -> socket.socket:
    """A listening socket for the previous rank.

    Raises OSError, with address and reason, if the port can't be taken.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(MAX_CALLERS)
    except OSError as error:
        listener.close()
        raise OSError(error.errno, f"frame port {port} on {host}: {error.strerror}") from error
    return listener


@dataclass(frozen=True)
class _Terms:
    """What holds for all connections of a rank that joins."""

    deadline: float  # monotonic
    stopped: Callable[[], bool]
    keepalive: KeepAlive
    security: LinkSecurity | None

    @property
    def left(self) -> float:
        """Seconds."""
        return self.deadline - time.monotonic()


def join(
    listener: socket.socket,
    rank: int,
    peers: Sequence[Peer],
    epoch: int,
    timeout: float,
    stopped: Callable[[], bool] = lambda: False,
    keepalive: KeepAlive | None = None,
    security: LinkSecurity | None = None,
) -> Links:
    """Connect this rank to its neighbours; returns when both sides have agreed.  Closes `listener`.

    Hello goes out while the own listener is served, so that a ring of any size joins without a leader.
    Raises LinkTimeout naming the neighbour that did not come within `timeout` seconds, LinkClosed if `stopped`
    or turned away by the next rank, FrameError if something else than a rank answers there.
    """
    terms = _Terms(time.monotonic() + timeout, stopped, keepalive or KeepAlive(), security)
    size = len(peers)
    after, before = peers[(rank + 1) % size], peers[(rank - 1) % size]
    expected = Hello(frames.PROTOCOL, epoch, before.rank, size)
    with contextlib.ExitStack() as undo, listener:
        outbound = _connect(after, terms)
        undo.callback(outbound.close)
        greeting = _Greeting(outbound, Hello(frames.PROTOCOL, epoch, rank, size), timeout)
        inbound = _accept(listener, before, expected, greeting, terms)
        undo.callback(inbound.close)
        inbound.send(Welcome(rank), timeout)
        answer = outbound.receive(max(terms.left, 1e-3))
        if answer != Welcome(after.rank):
            raise FrameError(f"{after} answered {answer!r} to Hello")
        undo.pop_all()
    return Links(inbound, outbound)


class _Greeting:
    """Hello on its way to the next rank: at once, or after a handshake in which that one has to take part."""

    def __init__(self, connection: Connection, hello: Hello, timeout: float) -> None:
        self.connection, self._hello, self._timeout = connection, hello, timeout
        self.done = False

    def advance(self) -> None:
        """What can be done without waiting.  Raises LinkClosed."""
        if not self.done and self.connection.shake_hands():
            self.connection.send(self._hello, self._timeout)
            self.done = True


def _connect(peer: Peer, terms: _Terms) -> Connection:
    while True:
        left = terms.left
        try:
            sock = socket.create_connection(
                (peer.host, peer.port), timeout=min(max(left, 1e-3), 5.0)
            )
            if terms.security is not None:
                sock = terms.security.call(sock, peer.name)
            return Connection(sock, str(peer), terms.keepalive)
        except OSError as error:
            if left <= RETRY_SECONDS:
                raise LinkTimeout(f"{peer} can't be reached: {error}") from error
        if terms.stopped():
            raise LinkClosed(f"stopped while connecting to {peer}")
        time.sleep(RETRY_SECONDS)


def _accept(
    listener: socket.socket, peer: Peer, expected: Hello, greeting: _Greeting, terms: _Terms
) -> Connection:
    """Wait for `peer`, and until the own greeting has left.

    Whoever says anything else than the expected Hello is turned away; whoever says nothing holds nobody up.
    """
    listener.settimeout(0.0)
    callers: list[Connection] = []
    found: Connection | None = None
    with contextlib.ExitStack() as on_failure, contextlib.ExitStack() as always:
        always.callback(_close_all, callers)
        while (left := terms.left) > 0:
            if terms.stopped():
                raise LinkClosed(f"stopped while waiting for {peer}")
            greeting.advance()
            if found is not None and greeting.done:
                on_failure.pop_all()
                return found
            sources: list[socket.socket | Connection] = [listener, *callers]
            if not greeting.done:
                sources.append(greeting.connection)
            ready = select.select(sources, [], [], min(left, 0.5))[0]
            if found is None and (found := _find(peer, expected, callers, ready, terms.security)):
                on_failure.callback(found.close)
            if listener in ready:
                callers += _answer(listener, terms)
                if len(callers) > MAX_CALLERS:
                    callers.pop(0).close()
    if found is None:
        raise LinkTimeout(f"{peer} has not connected")
    raise LinkTimeout(f"{greeting.connection.peer} has not answered the TLS handshake")


def _close_all(connections: Sequence[Connection]) -> None:
    for connection in connections:
        connection.close()


def _answer(listener: socket.socket, terms: _Terms) -> list[Connection]:
    """The next caller; none if it has hung up already."""
    try:
        sock, address = listener.accept()
    except (BlockingIOError, ConnectionError):
        return []
    try:
        if terms.security is not None:
            sock = terms.security.serve(sock)
        return [Connection(sock, f"the caller at {address[0]}", terms.keepalive)]
    except OSError:
        return []


def _find(
    peer: Peer,
    expected: Hello,
    callers: list[Connection],
    ready: Sequence[socket.socket | Connection],
    security: LinkSecurity | None,
) -> Connection | None:
    """Take out of `callers` the one that said the expected Hello; whoever said anything else is closed."""
    for caller in [caller for caller in callers if caller in ready]:
        right = _is_expected(caller, peer, expected, security)
        if right is None:
            continue
        callers.remove(caller)
        if right:
            caller.peer = str(peer)
            return caller
        caller.close()
    return None


def _is_expected(
    caller: Connection, peer: Peer, expected: Hello, security: LinkSecurity | None
) -> bool | None:
    """Whether it is `peer` and said the expected Hello; None while it has not said anything whole."""
    try:
        hello = caller.poll() if caller.shake_hands() else None
    except (FrameError, LinkClosed) as error:
        log.warning("frame link refused", caller=caller.peer, reason=str(error))
        return False
    if hello is None:
        return None
    if hello != expected:
        log.warning(
            "frame link refused", caller=caller.peer, got=repr(hello), expected=repr(expected)
        )
        return False
    if reason := caller.problem(security, peer.name):
        log.warning("frame link refused", caller=caller.peer, reason=reason)
        return False
    return True
