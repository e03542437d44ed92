"""The file of API keys, and finding a key in it: slowly the first time, fast after that.

The file is looked at for every request, and read again when it has changed.  One that can't be read any more
keeps the keys of before in force, with a line in the log; one that is gone lets nobody in.
"""

from __future__ import annotations

import asyncio
import hashlib
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import filelock
import msgspec
import structlog

from server.access.errors import AccessError, TokenExpired, Unauthorized, VerifierBusy
from server.access.key import KeyRecord, id_of
from server.access.principal import Principal, Role
from server.access.private_file import (
    Version,
    make_private_folder,
    read_private,
    version_of,
    write_private,
)

LOCK_SECONDS = 10.0
REMEMBERED = 4096  # digests of keys that were right, and as many of wrong ones
VERIFYING = 1  # slow hashes at the same time: wrong keys take no more than one core
WAITING = 32  # of first uses that wait for one

T = TypeVar("T")

log = structlog.get_logger(__name__)

_NOT_KNOWN = "The API key is not valid."


class Recent(OrderedDict[bytes, T]):
    """The latest entries."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self._most = most

    def put(self, digest: bytes, value: T) -> None:
        self[digest] = value
        if len(self) > self._most:
            self.popitem(last=False)


class KeyFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What stands in the file, as JSON."""

    keys: tuple[KeyRecord, ...] = ()
    version: int = 1


def read_keys(path: Path) -> tuple[KeyRecord, ...]:
    """All keys; none if there is no file.  Raises AccessError."""
    if version_of(path) is None:
        return ()
    try:
        stored = msgspec.json.decode(read_private(path), type=KeyFile)
    except msgspec.MsgspecError as error:
        raise AccessError(f"{path}: is not a file of keys: {error}.") from error
    if stored.version != 1:
        raise AccessError(f"{path}: version {stored.version} is not known here.")
    return stored.keys


@contextmanager
def changing(path: Path) -> Iterator[list[KeyRecord]]:
    """The keys as a list that is written back at the end; nobody else changes them meanwhile."""
    try:
        make_private_folder(path.parent)
        lock = filelock.FileLock(path.with_name(path.name + ".lock"), LOCK_SECONDS, mode=0o600)
        with lock:
            keys = list(read_keys(path))
            yield keys
            write_private(path, msgspec.json.format(msgspec.json.encode(KeyFile(tuple(keys)))))
    except filelock.Timeout as error:
        raise AccessError(f"{path}: another program has held its lock for too long.") from error
    except OSError as error:
        raise AccessError(f"{path}: can't be changed: {error.strerror}.") from error


class KeyStore:
    """Finds principals by their keys.  For one asyncio loop."""

    def __init__(self, path: Path, clock: Callable[[], float] = time.time) -> None:
        """Raises AccessError if the file is broken or others may read it; it need not be there."""
        self.path = path
        self._clock = clock
        self._pepper = secrets.token_bytes(
            32
        )  # of this process: the digests say nothing without it
        self._right: Recent[KeyRecord] = Recent(REMEMBERED)
        self._wrong: Recent[None] = Recent(REMEMBERED)
        self._verifying = asyncio.Semaphore(VERIFYING)
        self._waiting = 0
        self._version: Version | None = version_of(path)
        self._keys = {record.id: record for record in read_keys(path)}
        self._in_use = bool(self._keys)

    @property
    def in_use(self) -> bool:
        """Whether there is any key, valid or not, or was one: what was closed once does not open by itself."""
        self._refresh()
        return self._in_use

    def __len__(self) -> int:
        """Keys that open something now."""
        self._refresh()
        now = self._clock()
        return sum(k.revoked is None and not k.expired(now) for k in self._keys.values())

    async def find(self, key: str) -> Principal:
        """Who has this key.  Raises Unauthorized, TokenExpired, VerifierBusy."""
        self._refresh()
        record = self._keys.get(id_of(key) or "")
        if record is None:
            raise Unauthorized(_NOT_KNOWN)
        digest = hashlib.blake2b(key.encode(), key=self._pepper, digest_size=32).digest()
        if self._right.get(digest) != record and not await self._is_right(key, digest, record):
            raise Unauthorized(_NOT_KNOWN)
        # Only whoever has the key itself is told more.
        if record.revoked is not None:
            raise Unauthorized("The API key was revoked.")
        if record.expired(self._clock()):
            raise TokenExpired("The API key has expired.")
        return Principal(record.id, record.name, Role.of(record.role), record.limits)

    async def _is_right(self, key: str, digest: bytes, record: KeyRecord) -> bool:
        if digest in self._wrong:
            return False
        if self._waiting >= WAITING:
            raise VerifierBusy
        self._waiting += 1
        try:
            async with self._verifying:
                right = await asyncio.to_thread(record.matches, key)
        finally:
            self._waiting -= 1
        if right:
            self._right.put(digest, record)
        else:
            self._wrong.put(digest, None)
        return right

    def _refresh(self) -> None:
        try:
            version = version_of(self.path)
            if version == self._version:
                return
            self._version = version
            keys = {record.id: record for record in read_keys(self.path)}
        except AccessError as error:
            log.error("the keys of before stay in force", reason=str(error))
            return
        self._keys = keys
        self._in_use = self._in_use or bool(keys)
        self._wrong.clear()
        log.info("keys were read again", keys=len(keys))
