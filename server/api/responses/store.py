"""Responses that are kept for later requests to go on from: in memory, bounded, and lost with the process."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any

import msgspec

from server.api.errors import ApiError
from server.replay.records import JournalError

PREVIOUS = "previous_response_id"
MAX_RESPONSES = 1000
MAX_BYTES = 64 << 20


class UnknownResponse(ApiError):
    """No response of this id is kept."""

    status = 404
    type = "invalid_request_error"

    def __init__(self, response_id: str, param: str | None = None) -> None:
        super().__init__(
            f"No response {response_id[:80]!r} is kept: it was deleted, not stored, too long to be kept,"
            " pushed out by newer ones, or made before the server was started.",
            param=param,
        )


class Stored(msgspec.Struct, frozen=True):
    """A response, what it was asked with, and the conversation that a next one goes on from."""

    document: dict[str, Any]
    input_items: list[dict[str, Any]]
    # Chat messages, this response's own included, without instructions.
    messages: list[dict[str, Any]]
    owner: str  # nobody else sees it

    @property
    def id(self) -> str:
        return str(self.document["id"])

    @property
    def encoded(self) -> bytes:
        """As it travels to a front door."""
        return msgspec.json.encode(self)

    @classmethod
    def decoded(cls, data: bytes) -> Stored:
        """Raises JournalError."""
        try:
            return msgspec.json.decode(data, type=cls)
        except msgspec.MsgspecError as error:
            raise JournalError(f"what was kept is no response: {error}") from error


@dataclass
class _Shelf:
    """What one owner has in the store, the least recently used first."""

    entries: OrderedDict[str, tuple[Stored, int]] = field(default_factory=OrderedDict)
    bytes: int = 0

    def drop(self, response_id: str) -> int:
        """Forget a response; returns its size."""
        _, size = self.entries.pop(response_id, (None, 0))
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
        """Keep a response; one that alone exceeds the bounds is not kept, nor one in the place of another's."""
        response_id = stored.id
        if self._owners.get(response_id, stored.owner) != stored.owner:
            return
        self._drop(response_id)
        size = len(stored.encoded)
        if size > self._max_bytes:
            return
        shelf = self._shelves.setdefault(stored.owner, _Shelf())
        shelf.entries[response_id] = stored, size
        shelf.bytes += size
        self._owners[response_id] = stored.owner
        self.bytes += size
        while len(self) > self._max_responses or self.bytes > self._max_bytes:
            largest = max(self._shelves.values(), key=self._share)
            self._drop(next(iter(largest.entries)))

    def get(self, response_id: str, owner: str, param: str | None = None) -> Stored:
        """The response of this id.  Raises UnknownResponse, also for another's."""
        if self._owners.get(response_id) != owner:
            raise UnknownResponse(response_id, param)
        entries = self._shelves[owner].entries
        entries.move_to_end(response_id)
        return entries[response_id][0]

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
