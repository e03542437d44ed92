"""Public keys of an identity provider: a file, or the address in the configuration.

Only that address is ever asked, never one that a token names, and with a deadline.  While it does not answer,
the keys of before are used.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import httpx
import jwt
import structlog

from server.access.errors import AccessError
from server.access.private_file import MAX_BYTES, Version, version_of

FETCH_SECONDS = 5.0
RETRY_SECONDS = 10.0  # between two attempts, also for a key id that is not known
MAX_DOCUMENT = 1 << 20

# What a key of the set is for; a symmetric key has no place in a public document.
_ALGORITHMS: dict[tuple[object, object], str] = {("RSA", None): "RS256", ("EC", "P-256"): "ES256"}

log = structlog.get_logger(__name__)


class Jwks(Protocol):
    """Where keys come from."""

    async def find(self, kid: str | None, algorithm: str) -> jwt.PyJWK | None:
        """The key called `kid` if it is one for `algorithm`; without an id, the only one there is."""
        ...


class KeySet:
    """The usable keys of one document."""

    def __init__(self, document: bytes) -> None:
        """Raises ValueError for what is no JWKS, or one without a usable key."""
        try:
            entries = json.loads(document)["keys"]
        except (KeyError, TypeError, UnicodeDecodeError) as error:
            raise ValueError("it has no list called keys") from error
        if not isinstance(entries, list):
            raise ValueError("its keys are not a list")
        self._keys = [key for entry in entries if (key := _usable(entry)) is not None]
        if not self._keys:
            raise ValueError("it has no RSA or P-256 key for signatures")

    def find(self, kid: str | None, algorithm: str) -> jwt.PyJWK | None:
        """See Jwks."""
        fitting = [key for key in self._keys if key.algorithm_name == algorithm]
        if kid is not None:
            return next((key for key in fitting if key.key_id == kid), None)
        return fitting[0] if len(fitting) == 1 else None


def _usable(entry: Any) -> jwt.PyJWK | None:
    if not isinstance(entry, Mapping) or entry.get("use", "sig") != "sig":
        return None
    kind = entry.get("kty")
    algorithm = _ALGORITHMS.get((kind, entry.get("crv") if kind == "EC" else None))
    if algorithm is None or entry.get("alg", algorithm) != algorithm:
        return None
    try:
        # Named by the kind of the key, so that no token can have it used for something else.
        return jwt.PyJWK(dict(entry), algorithm=algorithm)
    except jwt.PyJWTError:
        return None


class FileJwks:
    """Read again when the file has changed."""

    def __init__(self, path: Path) -> None:
        """Raises AccessError if it can't be used."""
        self._path = path
        self._version: Version | None = version_of(path)
        self._set = self._read()

    async def find(self, kid: str | None, algorithm: str) -> jwt.PyJWK | None:
        """See Jwks."""
        try:
            version = version_of(self._path)
            if version != self._version:
                self._version = version
                self._set = self._read()
        except AccessError as error:
            log.error("the keys of before stay in force", reason=str(error))
        return self._set.find(kid, algorithm)

    def _read(self) -> KeySet:
        try:
            with self._path.open("rb") as file:
                return KeySet(file.read(MAX_BYTES))
        except (OSError, ValueError) as error:
            raise AccessError(f"access.jwt.jwks = {self._path}: can't be used: {error}.") from error


class AddressJwks:
    """Asked when the keys are too old, and when a token names one that is not among them."""

    def __init__(
        self,
        address: str,
        max_age: float,
        clock: Callable[[], float] = time.monotonic,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._address, self._max_age, self._clock = address, max_age, clock
        self._transport = transport
        self._set: KeySet | None = None
        self._fetched = self._tried = -float("inf")
        self._fetching = asyncio.Lock()

    async def find(self, kid: str | None, algorithm: str) -> jwt.PyJWK | None:
        """See Jwks."""
        if self._clock() - self._fetched >= self._max_age:
            await self._fetch()
        found = self._set.find(kid, algorithm) if self._set else None
        if found is None and self._set is not None:
            await self._fetch()
            found = self._set.find(kid, algorithm)
        return found

    async def _fetch(self) -> None:
        """At most once in RETRY_SECONDS: tokens that name unknown keys must not become requests."""
        async with self._fetching:
            if self._clock() - self._tried < RETRY_SECONDS:
                return
            self._tried = self._clock()
            try:
                self._set = KeySet(await asyncio.wait_for(self._download(), FETCH_SECONDS))
            except (httpx.HTTPError, ValueError, asyncio.TimeoutError) as error:
                log.error("no keys came from access.jwt.jwks", error=repr(error)[:200])
                return
            self._fetched = self._clock()

    async def _download(self) -> bytes:
        async with (
            httpx.AsyncClient(transport=self._transport, follow_redirects=False) as client,
            client.stream("GET", self._address) as response,
        ):
            response.raise_for_status()
            body = bytearray()
            async for chunk in response.aiter_bytes():
                body += chunk
                if len(body) > MAX_DOCUMENT:
                    raise ValueError(f"the document has more than {MAX_DOCUMENT} bytes")
            return bytes(body)
