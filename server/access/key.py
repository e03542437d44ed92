"""One API key: mlxc_<id>_<secret>.

The id finds the record, the secret has 256 random bits.  Stored is a salted scrypt hash of the whole key; a key
that was right once is found by a keyed digest after that (see server.access.store).
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
import secrets
from typing import Annotated

import msgspec

from config.access import RoleName
from server.access.principal import NO_LIMITS, KeyLimits

PREFIX = "mlxc_"
ID_BYTES = 6
SECRET_BYTES = 32
_SHAPE = re.compile(r"mlxc_([0-9a-f]{12})_[A-Za-z0-9_-]{43}")

SALT_BYTES = 16
HASH_BYTES = 32


class Scrypt(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Cost of a hash.  Bounded: the file is data, and a huge cost would stop the server."""

    n: Annotated[int, msgspec.Meta(ge=2, le=1 << 17)] = 1 << 14
    r: Annotated[int, msgspec.Meta(ge=1, le=16)] = 8
    p: Annotated[int, msgspec.Meta(ge=1, le=4)] = 1


class KeyRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is stored of a key.  Times are Unix seconds."""

    id: str
    name: str
    role: RoleName
    salt: bytes
    hash: bytes
    created: int
    cost: Scrypt = Scrypt()
    expires: int | None = None
    revoked: int | None = None
    limits: KeyLimits = NO_LIMITS

    def matches(self, key: str) -> bool:
        """Whether `key` is the one; takes some 50 ms and 16 MiB."""
        return hmac.compare_digest(_hash(key, self.salt, self.cost), self.hash)

    def expired(self, now: float) -> bool:
        return self.expires is not None and now >= self.expires


def id_of(key: str) -> str | None:
    """The id in a key of the right shape."""
    match = _SHAPE.fullmatch(key)
    return match.group(1) if match else None


def new_key(
    name: str,
    role: RoleName,
    now: int,
    expires: int | None = None,
    limits: KeyLimits | None = None,
    cost: Scrypt | None = None,
) -> tuple[str, KeyRecord]:
    """A key, which is to be shown once, and what to store of it."""
    key_id = secrets.token_hex(ID_BYTES)
    secret = base64.urlsafe_b64encode(secrets.token_bytes(SECRET_BYTES)).decode().rstrip("=")
    key = f"{PREFIX}{key_id}_{secret}"
    salt = secrets.token_bytes(SALT_BYTES)
    cost = cost or Scrypt()
    record = KeyRecord(
        id=key_id,
        name=name,
        role=role,
        salt=salt,
        hash=_hash(key, salt, cost),
        created=now,
        cost=cost,
        expires=expires,
        limits=limits or NO_LIMITS,
    )
    return key, record


def _hash(key: str, salt: bytes, cost: Scrypt) -> bytes:
    memory = 256 * cost.n * cost.r + (1 << 20)  # twice what it takes: OpenSSL's own limit is lower
    return hashlib.scrypt(
        key.encode(), salt=salt, n=cost.n, r=cost.r, p=cost.p, maxmem=memory, dklen=HASH_BYTES
    )
