"""What rank 0 sends of a response that may have to go on elsewhere: a stream of small records.

Spoken between a rank 0 and the front door in front of it, as the body of an HTTP response of type MEDIA_TYPE.
A record is its kind, the length of its payload in 4 bytes, and the payload.  To go on, the front door repeats
the request with the records of kind EVENT before the body; what is in them only rank 0 needs to know.  What a
response leaves behind for later ones is kept there too, since rank 0 may not be there any more.
"""

from __future__ import annotations

import re
import secrets
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum
from hashlib import blake2b

import msgspec

HEADER = "x-mlxc-journal"
KEPT_HEADER = "x-mlxc-kept"  # bytes of a record KEEP before the events
MEDIA_TYPE = "application/x-mlxc-journal"

MAX_PAYLOAD = 16 << 20  # bytes; a whole document is one record
MAX_KEPT = 8 << 20  # bytes of a payload of KEEP
MAX_EVENTS = 64 << 20  # bytes of all events of a request
NONCE_BYTES = 16

_HEAD = struct.Struct(">cI")
_HEADER = re.compile(rf"([0-9]{{1,12}})\.([0-9a-f]{{{2 * NONCE_BYTES}}})\.([0-9]{{1,9}})")


class JournalError(Exception):
    """Bytes that are no records, or records that don't fit the request; one sentence."""


class Kind(Enum):
    """What a record says."""

    START = b"S"  # status and headers of the response
    EVENT = b"J"  # the engine made a token, for which the BODY records after it are made
    BODY = b"B"  # bytes of the response
    KEEP = b"K"  # for the front door to keep, and to send with a later request that goes on from this response
    END = b"E"  # the response is whole
    BROKEN = b"X"  # the cluster failed, not the request: it can go on when the cluster works again


@dataclass(frozen=True)
class Record:
    """One record; `encoded` is how it travels."""

    kind: Kind
    payload: bytes = b""

    @property
    def encoded(self) -> bytes:
        return _HEAD.pack(self.kind.value, len(self.payload)) + self.payload


class RecordReader:
    """Cuts a stream of bytes into records, however it arrives."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> Iterator[Record]:
        """The records that `data` completes.  Raises JournalError."""
        view = self._rest + data
        at = 0
        while len(view) - at >= _HEAD.size:
            kind, length = _HEAD.unpack_from(view, at)
            if length > MAX_PAYLOAD:
                raise JournalError(f"a record of {length} bytes is longer than {MAX_PAYLOAD}")
            end = at + _HEAD.size + length
            if end > len(view):
                break
            yield Record(_kind(kind), view[at + _HEAD.size : end])
            at = end
        self._rest = view[at:]

    @property
    def complete(self) -> bool:
        """Whether nothing is left of a record that has only begun."""
        return not self._rest


def _kind(byte: bytes) -> Kind:
    try:
        return Kind(byte)
    except ValueError:
        raise JournalError(f"{byte!r} is no kind of record") from None


class Start(msgspec.Struct, frozen=True, array_like=True):
    """Payload of START."""

    status: int
    headers: list[tuple[bytes, bytes]]

    @property
    def record(self) -> Record:
        return Record(Kind.START, msgspec.msgpack.encode(self))

    @classmethod
    def of(cls, payload: bytes) -> Start:
        """Raises JournalError."""
        try:
            return msgspec.msgpack.decode(payload, type=cls)
        except msgspec.MsgspecError as error:
            raise JournalError(f"START: {error}") from error


def kept_length(header: str | None) -> int:
    """The value of KEPT_HEADER.  Raises JournalError."""
    if header is None:
        return 0
    if not (header.isascii() and header.isdigit() and len(header) < 10):
        raise JournalError(f"{KEPT_HEADER} = {header[:80]!r} should be a number of bytes")
    if int(header) > _HEAD.size + MAX_KEPT:
        raise JournalError(f"{KEPT_HEADER}: {header} bytes are more than {_HEAD.size + MAX_KEPT}")
    return int(header)


def kept_payload(data: bytes) -> bytes:
    """The payload of the one record KEEP that `data` is.  Raises JournalError."""
    reader = RecordReader()
    records = list(reader.feed(data))
    if not reader.complete or [record.kind for record in records] != [Kind.KEEP]:
        raise JournalError("what was kept is not one whole record")
    return records[0].payload


@dataclass(frozen=True)
class Context:
    """What a response holds that is in neither request nor model: all ids, times and seeds come from here."""

    created: int = field(default_factory=lambda: int(time.time()))  # Unix time, seconds
    nonce: str = field(default_factory=lambda: secrets.token_hex(NONCE_BYTES))

    def seed(self, index: int, bits: int) -> int:
        """Of choice `index`, where the request names none."""
        digest = blake2b(f"{self.nonce}/{index}".encode(), digest_size=8).digest()
        return int.from_bytes(digest, "big") >> (64 - bits)

    def header(self, events: int = 0) -> str:
        """The value of HEADER, with so many bytes of events before the body."""
        return f"{self.created}.{self.nonce}.{events}"

    @classmethod
    def parse(cls, header: str) -> tuple[Context, int]:
        """The context, and how many bytes of events come before the body.  Raises JournalError."""
        match = _HEADER.fullmatch(header)
        if match is None:
            raise JournalError(f"{HEADER} = {header[:80]!r} should be CREATED.NONCE.LENGTH")
        length = int(match[3])
        if length > MAX_EVENTS:
            raise JournalError(f"{HEADER}: {length} bytes of events are more than {MAX_EVENTS}")
        return cls(int(match[1]), match[2]), length
