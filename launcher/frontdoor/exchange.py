"""One request and what has been answered of it, over any number of attempts at rank 0.  No clock, no socket.

Each attempt repeats the response from its first byte; what the client has had already is dropped here, and
must be the same bytes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from hashlib import blake2b
from typing import Literal

import msgspec

from server.replay.records import MAX_EVENTS, Context, JournalError, Kind, Record, Start

BUSY = frozenset(
    (429, 503)
)  # statuses by which a rank 0 that has just started refuses a known request
NOT_READY = "not_ready"
SHOWN = 200  # characters of another one's reason

END: Literal["end"] = "end"
Out = Start | bytes | Literal["end"]
"""What the client gets next: the head, bytes of the body, and that the response is whole."""


class Interrupted(Exception):
    """This attempt is over, the request is not.

    fault: the cluster failed at work, instead of not being there yet.
    """

    def __init__(self, reason: str, *, fault: bool) -> None:
        super().__init__(reason)
        self.fault = fault


class Diverged(Exception):
    """The response that was made again is another one than the client has."""


class _ErrorFields(msgspec.Struct):
    code: str | None = None
    message: str = ""


class _ErrorBody(msgspec.Struct):
    error: _ErrorFields


class Exchange:
    """See the module's text."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self.events = bytearray()  # EVENT records, as rank 0 wrote them
        self.start: Start | None = None  # as the client has it
        self.delivered = 0  # bytes of the body that the client has
        self.kept: bytes | None = None  # what the response leaves behind for later ones
        self.unsent: deque[Out] = deque()  # counted as delivered, and not with the client yet
        self.ended = False  # no rank 0 has anything to add
        self.tokens = 0
        self.attempts = 0
        self._digest = blake2b(digest_size=16)  # of what is delivered
        self._begin()

    def _begin(self) -> None:
        self._seen = 0  # bytes of the body in this attempt
        self._again = blake2b(digest_size=16)  # of what of it the client has
        self._held: tuple[Start, list[bytes]] | None = None
        self._headed = False
        self._tokens_before = self.tokens

    @property
    def resumed(self) -> bool:
        """Whether an earlier attempt got anywhere."""
        return self.tokens > 0 or self.start is not None

    @property
    def answered(self) -> bool:
        """Whether this attempt has got anything of the answer."""
        return self._held is None and (self.tokens > self._tokens_before or self._seen > 0)

    def begin(self) -> None:
        """The next attempt."""
        self.attempts += 1
        self._begin()

    def take(self, record: Record) -> Iterator[Out]:
        """What the client gets for a record.  Raises Interrupted, Diverged and JournalError."""
        if record.kind is Kind.EVENT:
            self._take_event(record)
        elif record.kind is Kind.KEEP:
            self.kept = record.payload
        elif record.kind is Kind.START:
            yield from self._take_start(Start.of(record.payload))
        elif record.kind is Kind.BROKEN:
            raise Interrupted(record.payload[:SHOWN].decode(errors="replace"), fault=True)
        elif record.kind is Kind.BODY:
            if self._held is not None:
                self._held[1].append(record.payload)
            elif fresh := self._fresh(record.payload):
                yield fresh
        else:
            yield from self._take_end()

    def pass_on(self, start: Start, body: bytes) -> None:
        """A whole answer that no journal is kept of, in place of all records."""
        self.start, self.ended = start, True
        self.unsent.extend((start, body, END))

    def _take_event(self, record: Record) -> None:
        self.events += record.encoded
        if len(self.events) > MAX_EVENTS:
            raise JournalError(f"the events of a request take more than {MAX_EVENTS} bytes")
        self.tokens += 1

    def _take_start(self, start: Start) -> Iterator[Out]:
        if self._headed:
            raise JournalError("a response starts twice")
        self._headed = True
        if start.status in BUSY:
            self._held = start, []  # whether it is to be told is known from its body
        elif self.start is None:
            self.start = start
            yield start
        elif _shape(start) != _shape(self.start):
            raise Diverged(f"it started with {_shape(self.start)}, and again with {_shape(start)}")

    def _take_end(self) -> Iterator[Out]:
        if self._held is not None:
            start, parts = self._held
            body = b"".join(parts)
            reason = self._why_later(body)
            if reason is not None:
                raise Interrupted(reason, fault=False)
            self.start = start
            yield start
            if fresh := self._fresh(body):
                yield fresh
        if self._seen < self.delivered:
            raise Diverged(f"it ended after {self._seen} of {self.delivered} bytes")
        self.ended = True
        yield END

    def _why_later(self, body: bytes) -> str | None:
        """Why a refusal is no answer yet; None: it is one."""
        try:
            error = msgspec.json.decode(body, type=_ErrorBody).error
        except msgspec.MsgspecError:
            return None
        if error.code == NOT_READY or self.resumed:
            return error.message[:SHOWN]
        return None

    def _fresh(self, data: bytes) -> bytes:
        """The part of `data` that the client does not have."""
        known = min(len(data), max(0, self.delivered - self._seen))
        self._seen += len(data)
        if known:
            self._again.update(data[:known])
            if self._seen >= self.delivered and self._again.digest() != self._digest.digest():
                raise Diverged(f"its first {self.delivered} bytes are others")
            data = data[known:]
        if data:
            self._digest.update(data)
            self.delivered += len(data)
        return data


def _shape(start: Start) -> tuple[int, bytes]:
    kinds = [value for name, value in start.headers if name.lower() == b"content-type"]
    return start.status, kinds[0] if kinds else b""
