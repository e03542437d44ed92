"""A streaming client of an OpenAI-compatible API that notes when each piece of text arrives."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from itertools import pairwise
from types import TracebackType
from typing import Any

import httpx
import msgspec

REQUEST_TIMEOUT = 300.0  # seconds for one whole response


class _Text(msgspec.Struct):
    content: str | None = None


class _Choice(msgspec.Struct):
    text: str | None = None
    delta: _Text | None = None
    finish_reason: str | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int
    completion_tokens: int


class _Chunk(msgspec.Struct):
    """The fields of a chunk that are read; all others are passed over."""

    choices: list[_Choice] = []
    usage: _Usage | None = None
    error: Any = None


_decoder = msgspec.json.Decoder(_Chunk)


class StreamFailed(Exception):
    """The server refused the request, or broke its stream off; the message says how."""


@dataclass(frozen=True)
class Request:
    """One prompt, and how many tokens to generate: end-of-sequence tokens are to be ignored."""

    prompt: str
    max_tokens: int


@dataclass
class Outcome:
    """What became of one request.  Times are of time.perf_counter, in seconds.

    A server holds back text that may still change (half a character), so an arrival may bring several tokens.
    """

    sent: float  # when it was due, which under open load may be before it could be sent
    arrivals: list[float] = field(default_factory=list)  # of each chunk with text
    ended: float = 0.0
    prompt_tokens: int = 0
    tokens: int = 0  # generated, as the server counts them; the arrivals if it does not
    finish: str | None = None
    error: str | None = None

    @property
    def first_token(self) -> float | None:
        """Seconds from `sent` to the first text."""
        return self.arrivals[0] - self.sent if self.arrivals else None

    @property
    def gaps(self) -> list[float]:
        """Inter-token latencies in seconds."""
        return [after - before for before, after in pairwise(self.arrivals)]


class Client:
    """Many requests at a time to one server."""

    def __init__(self, url: str, model: str, chat: bool = False) -> None:
        """`url`: up to but without /v1.  `chat`: use Chat Completions, which adds the model's template."""
        self._model, self._chat = model, chat
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
        self._http = httpx.AsyncClient(base_url=url, limits=limits, timeout=REQUEST_TIMEOUT)

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._http.aclose()

    async def run(
        self,
        request: Request,
        due: float | None = None,
        on_text: Callable[[Outcome], None] | None = None,
    ) -> Outcome:
        """Send a request and read its stream to the end.  Failures are part of the outcome.

        `on_text` is called after each arrival.
        """
        outcome = Outcome(time.perf_counter() if due is None else due)
        try:
            await asyncio.wait_for(self._read(request, outcome, on_text), REQUEST_TIMEOUT)
        except (httpx.HTTPError, StreamFailed) as error:
            outcome.error = f"{type(error).__name__}: {error}"
        except asyncio.TimeoutError:
            outcome.error = f"no end within {REQUEST_TIMEOUT:g} s"
        outcome.ended = time.perf_counter()
        outcome.tokens = outcome.tokens or len(outcome.arrivals)
        return outcome

    async def _read(
        self, request: Request, outcome: Outcome, on_text: Callable[[Outcome], None] | None
    ) -> None:
        path, body = self._body(request)
        async with self._http.stream("POST", path, json=body) as response:
            if response.status_code != httpx.codes.OK:
                text = (await response.aread()).decode(errors="replace")
                raise StreamFailed(f"status {response.status_code}: {text[:200]}")
            async for chunk in _chunks(response):
                if _note(chunk, outcome) and on_text is not None:
                    on_text(outcome)
        if outcome.finish is None:
            raise StreamFailed("the stream ended without a finish reason")

    def _body(self, request: Request) -> tuple[str, dict[str, Any]]:
        body = {
            "model": self._model,
            "max_tokens": request.max_tokens,
            "temperature": 0.0,
            "ignore_eos": True,  # servers that do not know it may end early: Outcome.finish tells
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if self._chat:
            messages = [{"role": "user", "content": request.prompt}]
            return "/v1/chat/completions", {**body, "messages": messages}
        return "/v1/completions", {**body, "prompt": request.prompt}


async def _chunks(response: httpx.Response) -> AsyncIterator[_Chunk]:
    """The events of a stream; ends with [DONE], or with the connection."""
    async for line in response.aiter_lines():
        data = line.removeprefix("data:").strip()
        if not line.startswith("data:"):
            continue
        if data == "[DONE]":
            return
        try:
            yield _decoder.decode(data)
        except msgspec.MsgspecError as error:
            raise StreamFailed(f"not a chunk: {data[:200]!r} ({error})") from error


def _note(chunk: _Chunk, outcome: Outcome) -> bool:
    """Enter a chunk into the outcome; whether it brought text."""
    if chunk.error is not None:
        raise StreamFailed(f"error in the stream: {chunk.error}")
    if chunk.usage is not None:
        outcome.prompt_tokens = chunk.usage.prompt_tokens
        outcome.tokens = chunk.usage.completion_tokens
    text = ""
    for choice in chunk.choices:
        outcome.finish = choice.finish_reason or outcome.finish
        text += choice.text or (choice.delta.content if choice.delta else None) or ""
    if text:
        outcome.arrivals.append(time.perf_counter())
    return bool(text)
