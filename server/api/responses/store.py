"""Responses that are kept for later requests to go on from: in memory, bounded, and lost with the process."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

from server.api.errors import ApiError
from server.api.wire import to_json

MAX_RESPONSES = 1000
MAX_BYTES = 64 << 20


class UnknownResponse(ApiError):
    """No response of this id is kept."""

    status = 404
    type = "invalid_request_error"

    def __init__(self, response_id: str, param: str | None = None) -> None:
        super().__init__(
            f"No response {response_id[:80]!r} is kept: it was deleted, not stored, pushed out by newer"
            " ones, or made before the server was started.",
            param=param,
        )


@dataclass(frozen=True)
class Stored:
    """A response, what it was asked with, and the conversation that a next one goes on from."""

    document: dict[str, Any]
    input_items: list[dict[str, Any]]
    messages: list[
        dict[str, Any]
    ]  # chat messages, this response's own included, without instructions
    owner: str  # nobody else sees it


class ResponseStore:
    """Stored responses by id; the least recently used ones go first."""

    def __init__(self, max_responses: int = MAX_RESPONSES, max_bytes: int = MAX_BYTES) -> None:
        self._max_responses, self._max_bytes = max_responses, max_bytes
        self._entries: OrderedDict[str, tuple[Stored, int]] = OrderedDict()
        self.bytes = 0

    def __len__(self) -> int:
        return len(self._entries)

    def put(self, response_id: str, stored: Stored) -> None:
        """Keep a response; one that alone exceeds the bounds is not kept, nor one in the place of another's."""
        if response_id in self._entries and self._entries[response_id][0].owner != stored.owner:
            return
        self._drop(response_id)
        size = len(to_json([stored.document, stored.input_items, stored.messages]))
        self._entries[response_id] = stored, size
        self.bytes += size
        while len(self) > self._max_responses or self.bytes > self._max_bytes:
            self._drop(next(iter(self._entries)))

    def get(self, response_id: str, owner: str, param: str | None = None) -> Stored:
        """The response of this id.  Raises UnknownResponse, also for another's."""
        entry = self._entries.get(response_id)
        if entry is None or entry[0].owner != owner:
            raise UnknownResponse(response_id, param)
        self._entries.move_to_end(response_id)
        return entry[0]

    def delete(self, response_id: str, owner: str) -> None:
        """Forget a response.  Raises UnknownResponse."""
        self.get(response_id, owner)
        self._drop(response_id)

    def _drop(self, response_id: str) -> None:
        _, size = self._entries.pop(response_id, (None, 0))
        self.bytes -= size
