"""Responses that are kept for later requests to go on from: in memory, bounded, and lost with the process."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
import structlog

from server.api.errors import ApiError
from server.api.wire import to_json
from server.replay.records import MAX_KEPT, JournalError

PREVIOUS = "previous_response_id"
MAX_RESPONSES = 1000
MAX_BYTES = 64 << 20
MAX_PARTS = MAX_KEPT - (64 << 10)  # bytes of one response, without id and owner

log = structlog.get_logger(__name__)


class UnknownResponse(ApiError):
    """No response of this id is kept."""

    status = 404
    type = "invalid_request_error"

    def __init__(
        self, response_id: str, param: str | None = None, reason: str | None = None
    ) -> None:
        why = reason or (
            "it was deleted, not stored, pushed out by newer ones, or made before the server was started"
        )
        super().__init__(f"No response {response_id[:80]!r} is kept: {why}.", param=param)


class Parts(msgspec.Struct, frozen=True, array_like=True):
    """JSON, which is read only when somebody asks for it: it may be long."""

    document: bytes
    input_items: bytes
    messages: bytes  # of the chat, this response's own included, without instructions


class Stored(msgspec.Struct, frozen=True, array_like=True):
    """A response, what it was asked with, and the conversation that a next one goes on from."""

    id: str
    owner: str  # nobody else sees it
    size: int  # bytes of its parts
    parts: Parts | None  # None: too long to be kept

    @classmethod
    def of(
        cls,
        document: dict[str, Any],
        input_items: Sequence[dict[str, Any]],
        messages: Sequence[dict[str, Any]],
        owner: str,
    ) -> Stored:
        parts = Parts(to_json(document), to_json(input_items), to_json(messages))
        size = len(parts.document) + len(parts.input_items) + len(parts.messages)
        return cls(str(document["id"]), owner, size, parts if size <= MAX_PARTS else None)

    @property
    def messages(self) -> list[dict[str, Any]]:
        return msgspec.json.decode(self.whole.messages, type=list[dict[str, Any]])

    @property
    def whole(self) -> Parts:
        assert self.parts is not None, "nothing else is given out"
        return self.parts

    @property
    def encoded(self) -> bytes:
        """As it travels to a front door."""
        return msgspec.msgpack.encode(self)

    @classmethod
    def decoded(cls, data: bytes) -> Stored:
        """Raises JournalError."""
        try:
            return msgspec.msgpack.decode(data, type=cls)
        except msgspec.MsgspecError as error:
            raise JournalError(f"what was kept is no response: {error}") from error


@dataclass
class _Shelf:
    """What one owner has in the store, the least recently used first."""

    entries: OrderedDict[str, Stored] = field(default_factory=OrderedDict)
    bytes: int = 0

    def drop(self, response_id: str) -> int:
        """Forget a response; returns its size."""
        size = _held(self.entries.pop(response_id))
        self.bytes -= size
        return size


class ResponseStore:
    """Stored responses by id.

    When it is full, whoever takes up the largest share of it loses those that were used least recently: nobody
    can push out what others have as long as they have less.
    """

    def __init__(self, max_responses: int = MAX_RESPONSES, max_bytes: int = MAX_BYTES) -> None:
        self._max_responses, self._max_bytes = max_responses, max_bytes
        self._shelves: dict[str, _Shelf] = {}
        self._owners: dict[str, str] = {}  # by id of a response
        self.bytes = 0

    def __len__(self) -> int:
        return len(self._owners)

    def put(self, stored: Stored) -> None:
        """Keep a response; of one that alone exceeds the bounds only that it does."""
        response_id = stored.id
        if self._owners.get(response_id, stored.owner) != stored.owner:
            return
        if stored.size > self._max_bytes:
            stored = msgspec.structs.replace(stored, parts=None)
        if stored.parts is None and response_id not in self._owners:
            log.warning("a response is too long to be kept", id=response_id, bytes=stored.size)
        self._drop(response_id)
        size = _held(stored)
        shelf = self._shelves.setdefault(stored.owner, _Shelf())
        shelf.entries[response_id] = stored
        shelf.bytes += size
        self._owners[response_id] = stored.owner
        self.bytes += size
        while len(self) > self._max_responses or self.bytes > self._max_bytes:
            largest = max(self._shelves.values(), key=self._share)
            self._drop(next(iter(largest.entries)))

    def get(self, response_id: str, owner: str, param: str | None = None) -> Stored:
        """The response of this id, whole.  Raises UnknownResponse, also for another's."""
        if self._owners.get(response_id) != owner:
            raise UnknownResponse(response_id, param)
        entries = self._shelves[owner].entries
        entries.move_to_end(response_id)
        stored = entries[response_id]
        if stored.parts is None:
            most = min(MAX_PARTS, self._max_bytes)
            reason = (
                f"with its conversation it has {stored.size} bytes, and at most {most} are kept"
            )
            raise UnknownResponse(response_id, param, reason)
        return stored

    def delete(self, response_id: str, owner: str) -> None:
        """Forget a response.  Raises UnknownResponse."""
        self.get(response_id, owner)
        self._drop(response_id)

    def _share(self, shelf: _Shelf) -> float:
        return max(len(shelf.entries) / self._max_responses, shelf.bytes / self._max_bytes)

    def _drop(self, response_id: str) -> None:
        owner = self._owners.pop(response_id, None)
        if owner is None:
            return
        shelf = self._shelves[owner]
        self.bytes -= shelf.drop(response_id)
        if not shelf.entries:
            del self._shelves[owner]


def _held(stored: Stored) -> int:
    """Bytes of the store that it takes."""
    return stored.size if stored.parts is not None else 0
