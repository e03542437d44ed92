"""The object `message` and its events, told from what the chat dialect says of the same job."""

from __future__ import annotations

from typing import Any

from server.api.chat import ChatDialect
from server.api.errors import Failure
from server.api.generation import Choice, Piece
from server.api.messages.blocks import Blocks
from server.api.streaming import Events, Usage, named_event

NO_USAGE: dict[str, Any] = {
    "input_tokens": 0,
    "cache_creation": None,
    "cache_creation_input_tokens": 0,
    "cache_read_input_tokens": 0,
    "inference_geo": None,
    "output_tokens": 0,
    "output_tokens_details": None,
    "server_tool_use": None,
    "service_tier": "standard",
}
STOP_REASONS = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}


class MessagesDialect:
    """One message; `prompt_tokens` is known before it begins."""

    LAST = b""  # message_stop says that it is the last

    def __init__(self, chat: ChatDialect, prompt_tokens: int, request_id: str) -> None:
        self._chat, self._prompt_tokens = chat, prompt_tokens
        self._request_id = request_id
        self.id = f"msg_{chat.id.rpartition('-')[2]}"
        self._blocks = Blocks()
        self._finish: str = "stop"
        self._stop: str | None = None

    def document(self, choices: list[Choice], usage: Usage) -> dict[str, Any]:
        [choice] = self._chat.document(choices, usage)["choices"]
        for _ in self._blocks.take(choice["message"]):
            pass
        for _ in self._blocks.end():
            pass
        self._finish, self._stop = choice["finish_reason"], choices[0].stop
        return self._message() | {
            "content": self._blocks.shown,
            **self._end(),
            "usage": _usage(usage),
        }

    def opening(self) -> Events:
        usage = {**NO_USAGE, "input_tokens": self._prompt_tokens}
        yield {"type": "message_start", "message": {**self._message(), "usage": usage}}

    def delta(self, piece: Piece) -> Events:
        return self._take(self._chat.delta(piece))

    def finish(self, piece: Piece) -> Events:
        self._stop = piece.stop
        return self._take(self._chat.finish(piece))

    def closing(self, usage: Usage) -> Events:
        yield from self._blocks.end()
        yield {"type": "message_delta", "delta": self._end(), "usage": _usage(usage)}
        yield {"type": "message_stop"}

    def failure(self, failure: Failure) -> Events:
        yield failure.anthropic_body(self._request_id)

    def encode(self, event: dict[str, Any]) -> bytes:
        return named_event(event)

    def _take(self, chunks: Events) -> Events:
        for chunk in chunks:
            for choice in chunk["choices"]:
                self._finish = choice["finish_reason"] or self._finish
                yield from self._blocks.take(choice["delta"])

    def _message(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "type": "message",
            "role": "assistant",
            "model": self._chat.model.id,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "stop_details": None,
            "container": None,
        }

    def _end(self) -> dict[str, Any]:
        if self._stop is not None and self._finish == "stop":
            return {"stop_reason": "stop_sequence", "stop_sequence": self._stop}
        return {"stop_reason": STOP_REASONS[self._finish], "stop_sequence": None}


def _usage(usage: Usage) -> dict[str, Any]:
    """Anthropic counts what came from a cache apart."""
    cached = usage["prompt_tokens_details"]["cached_tokens"]
    details = usage.get("completion_tokens_details")
    thinking = {"thinking_tokens": details["reasoning_tokens"]} if details else None
    return {
        **NO_USAGE,
        "input_tokens": usage["prompt_tokens"] - cached,
        "cache_read_input_tokens": cached,
        "output_tokens": usage["completion_tokens"],
        "output_tokens_details": thinking,
    }
