"""One sequence in flight: what the observers of requests are handed."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.request import FinishReason, GenerationRequest
from server.observe.context import Caller


@dataclass
class Flight:
    """One sequence between its arrival and its end; all times are monotonic seconds."""

    request: GenerationRequest
    caller: Caller
    began: float
    tokens: int = 0  # made since then
    queued: float | None = None  # seconds; known with the first token
    first_at: float | None = None
    last_at: float | None = None
    finish: FinishReason | None = None
    error: Exception | None = None

    @property
    def group(self) -> str:
        """What its HTTP request is called; sequences of one request share it."""
        return self.caller.request_id or self.request.id
