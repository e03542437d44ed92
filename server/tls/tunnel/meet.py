"""How tunnels find each other: each waits for the one before and calls the next, and both check names."""

from __future__ import annotations

import socket
import ssl
import threading
import time
from concurrent.futures import Future

from server.tls.identity import Identity, Kind, identity_of

HANDSHAKE_SECONDS = 5.0
RETRY_SECONDS = 0.1
MAX_CALLERS = 32  # whose handshakes go on at a time
WELCOME = b"\1"  # from the one that was called, once it knows who calls


class Failed(Exception):
    """The neighbour did not come, or is another; one sentence."""

    word = "absent"


class Unusable(Failed):
    """Address or files can't be used on this side."""

    word = "unusable"


def split(address: str) -> tuple[str, int]:
    """host:port"""
    host, _, port = address.rpartition(":")
    return host, int(port)


def call(address: str, name: str, context: ssl.SSLContext, deadline: float) -> ssl.SSLSocket:
    """A connection to the node `name`.  Raises Failed, at once if somebody else answers."""
    where = f"{name} at {address}"
    told: OSError | None = (
        None  # the last reason that is more than silence, or than nobody being there
    )
    while True:
        left = deadline - time.monotonic()
        try:
            return _call_once(address, name, context, min(max(left, 0.01), HANDSHAKE_SECONDS))
        except ssl.SSLCertVerificationError as error:
            reason = f"its certificate is refused: {error.verify_message}"
            raise Failed(f"{where}: {reason}") from error
        except OSError as error:
            if told is None or not isinstance(error, TimeoutError | ConnectionRefusedError):
                told = error
            if left <= RETRY_SECONDS:
                raise Failed(f"{where} can't be reached by TLS: {told}") from error
        time.sleep(RETRY_SECONDS)


def _call_once(address: str, name: str, context: ssl.SSLContext, timeout: float) -> ssl.SSLSocket:
    plain = socket.create_connection(split(address), timeout=timeout)
    plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    secure = context.wrap_socket(plain, server_hostname=Identity(Kind.NODE, name).dns_name)
    # Only its first byte says that our certificate was taken: in TLS 1.3 the client is done before.
    if secure.recv(1) != WELCOME:
        secure.close()
        raise ConnectionResetError("it hung up; it may not know our certificate")
    return secure


class Reception:
    """Waits at one address for the node `name`; whoever else comes, or says nothing, holds nobody up."""

    def __init__(self, address: str, name: str, context: ssl.SSLContext) -> None:
        """Raises OSError if the address can't be listened on."""
        self._name, self._context = name, context
        self._listener = socket.create_server(split(address), backlog=MAX_CALLERS)
        self._places = threading.BoundedSemaphore(MAX_CALLERS)
        self._found: Future[ssl.SSLSocket] = Future()
        self._choosing = threading.Lock()
        self._over = False
        self._last_refusal = ""
        self.address = address

    def wait(self, deadline: float) -> ssl.SSLSocket:
        """The connection.  Raises Failed."""
        with self._listener:
            while not self._found.done():
                left = deadline - time.monotonic()
                if left <= 0 and self._give_up():
                    refusal = f"; a caller was refused: {self._last_refusal}" * bool(
                        self._last_refusal
                    )
                    raise Failed(f"{self._name} has not called {self.address}{refusal}")
                self._listener.settimeout(max(0.01, min(left, 0.2)))
                try:
                    caller, _ = self._listener.accept()
                except (TimeoutError, ConnectionError):
                    continue
                if self._places.acquire(blocking=False):
                    threading.Thread(target=self._greet, args=(caller,), daemon=True).start()
                else:
                    caller.close()
        return self._found.result()

    def _give_up(self) -> bool:
        """Welcome nobody any more; False if somebody has been."""
        with self._choosing:
            self._over = not self._found.done()
        return self._over

    def _greet(self, plain: socket.socket) -> None:
        try:
            secure = self._known(plain)
            try:
                self._choose(secure)
            except OSError:
                secure.close()
                raise
        except (OSError, ValueError) as error:
            self._last_refusal = str(error)
        finally:
            self._places.release()

    def _known(self, plain: socket.socket) -> ssl.SSLSocket:
        """The caller, whose certificate is the node's.  Raises OSError and ValueError, and has hung up then."""
        held = plain
        try:
            plain.settimeout(HANDSHAKE_SECONDS)
            plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            held = secure = self._context.wrap_socket(plain, server_side=True)
            holder = identity_of(secure.getpeercert())
            if holder != Identity(Kind.NODE, self._name):
                raise ConnectionRefusedError(f"it is {holder or 'nobody of the cluster'}")
        except (OSError, ValueError):
            held.close()
            raise
        return secure

    def _choose(self, secure: ssl.SSLSocket) -> None:
        """Only one caller is welcomed, and none that nobody waits for: each believes to be the neighbour."""
        with self._choosing:
            if self._over or self._found.done():
                raise ConnectionRefusedError(f"{self._name} has called before, or too late")
            secure.sendall(WELCOME)
            self._found.set_result(secure)
