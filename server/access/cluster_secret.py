"""The secret by which the ranks and the launcher know each other, and how it is shown without being told.

What travels is a signature over the method, the time and a number that is used once, so who listens learns
nothing that opens anything later.  What a message says is not signed: for that there is TLS.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

from server.access.errors import AccessError, Unauthorized
from server.access.private_file import read_private, version_of, write_private

SCHEME = "cluster"
SECRET_BYTES = 32
WINDOW_S = 60.0  # by which the clocks of two nodes may differ, and a message may be late
_NONCE_BYTES = 16
_MOST_NONCES = 100_000  # within two windows; ranks send one a second


def ensure_secret(path: Path) -> None:
    """Make the file if it is not there."""
    if version_of(path) is None:
        write_private(path, secrets.token_hex(SECRET_BYTES).encode() + b"\n")


def read_secret(path: Path) -> bytes:
    """Raises AccessError if there is none that can be used."""
    if version_of(path) is None:
        raise AccessError(
            f"access.cluster_secret_file = {path}: there is no such file; "
            "`python -m server.keys secret` makes it, and each node needs a copy."
        )
    secret = read_private(path).strip()
    if len(secret) < SECRET_BYTES:
        raise AccessError(
            f"access.cluster_secret_file = {path}: {len(secret)} bytes are too few, "
            f"at least {SECRET_BYTES} are needed."
        )
    return secret


class Signer:
    """Makes the value of `authorization` for one call."""

    def __init__(self, secret: bytes, clock: Callable[[], float] = time.time) -> None:
        self._secret, self._clock = secret, clock

    def sign(self, method: str) -> str:
        """`method`: the name of the call."""
        moment, nonce = str(int(self._clock() * 1000)), secrets.token_hex(_NONCE_BYTES)
        return f"{SCHEME} {moment}.{nonce}.{_signature(self._secret, method, moment, nonce)}"


class Verifier:
    """Checks such values, each of which is good once."""

    def __init__(self, secret: bytes, clock: Callable[[], float] = time.time) -> None:
        self._secret, self._clock = secret, clock
        self._seen: set[str] = set()
        self._order: deque[tuple[float, str]] = deque()

    def check(self, method: str, value: str) -> None:
        """Raises Unauthorized."""
        scheme, _, signed = value.partition(" ")
        parts = signed.split(".")
        if scheme != SCHEME or len(parts) != 3 or not value.isascii():
            raise Unauthorized("This is not a signature of the cluster.")
        moment, nonce, signature = parts
        expected = _signature(self._secret, method, moment, nonce)
        if not hmac.compare_digest(signature, expected):
            raise Unauthorized(
                "The signature is wrong: the cluster secrets of the two nodes differ."
            )
        now = self._clock()
        if abs(now - int(moment) / 1000) > WINDOW_S:  # a number: it was signed
            raise Unauthorized(f"The clocks of the two nodes differ by more than {WINDOW_S:g} s.")
        self._use(nonce, now)

    def _use(self, nonce: str, now: float) -> None:
        while self._order and self._order[0][0] < now - 2 * WINDOW_S:
            self._seen.discard(self._order.popleft()[1])
        if nonce in self._seen or len(self._seen) >= _MOST_NONCES:
            raise Unauthorized("The signature was used before.")
        self._seen.add(nonce)
        self._order.append((now, nonce))


def _signature(secret: bytes, method: str, moment: str, nonce: str) -> str:
    text = f"{method}\n{moment}\n{nonce}".encode()
    return hmac.new(secret, text, hashlib.sha256).hexdigest()
