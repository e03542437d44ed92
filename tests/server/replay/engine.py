"""An engine whose tokens depend on prompt, seed and position only, and whose timing depends on nothing that
is asked; and the application over it, asked for a journal.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncGenerator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any

import httpx
from starlette.types import ASGIApp

from pipeline.request import GenerationRequest, TokenEvent, TokenLogprobs
from server.api.app import create_app
from server.replay.records import HEADER, Context, Record, RecordReader
from tests.server.api.fakes import TOKENIZER, ids, make_service

WORDS = ids("hello world, é and ü! 日本 -- so it goes on\n")
END_OF_TEXT = TOKENIZER.eos_token_id


@dataclass
class PureEngine:
    """Between two tokens it waits for a random number of turns of the loop."""

    jitter: random.Random = field(default_factory=lambda: random.Random(0))
    cached: int = 0
    requests: list[GenerationRequest] = field(default_factory=list)
    running: int = 0

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[TokenEvent, None]:
        self.requests.append(request)
        self.running += 1
        try:
            for position in range(len(request.emitted), request.max_tokens):
                for _ in range(self.jitter.randrange(4)):
                    await asyncio.sleep(0)
                await self.before(request, position)
                first = position == len(request.emitted)
                event = token_at(request, position, self.cached if first else 0)
                yield event
                if event.finish is not None:
                    return
        finally:
            self.running -= 1

    async def before(self, request: GenerationRequest, position: int) -> None:
        """Called before each token."""


def token_at(request: GenerationRequest, position: int, cached: int = 0) -> TokenEvent:
    key = f"{request.prompt}/{request.params.seed}/{position}".encode()
    number = int.from_bytes(blake2b(key, digest_size=4).digest(), "big")
    ends = number % 40 == 0 and END_OF_TEXT in request.params.end_tokens
    token = END_OF_TEXT if ends else WORDS[number % len(WORDS)]
    last = position + 1 == request.max_tokens
    logprobs = None
    if request.params.logprobs >= 0:
        top = tuple((word, -float(place)) for place, word in enumerate(WORDS[:3]))
        logprobs = TokenLogprobs(-(number % 7) / 8, top[: request.params.logprobs])
    return TokenEvent(token, "stop" if ends else "length" if last else None, logprobs, cached)


def make_app(engine: PureEngine, **settings: Any) -> ASGIApp:
    return create_app(make_service(engine, **settings))  # type: ignore[arg-type]


def ask(
    app: ASGIApp,
    path: str,
    body: Any,
    context: Context,
    events: bytes = b"",
    headers: dict[str, str] | None = None,
) -> list[Record]:
    """All records of one attempt."""
    response = ask_raw(app, path, body, context.header(len(events)), events, headers)
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "application/x-mlxc-journal"
    reader = RecordReader()
    records = list(reader.feed(response.content))
    assert reader.complete
    return records


def ask_raw(
    app: ASGIApp,
    path: str,
    body: Any,
    header: str,
    events: bytes = b"",
    headers: dict[str, str] | None = None,
) -> httpx.Response:
    async def call() -> httpx.Response:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return await client.post(
                path,
                content=events + json.dumps(body).encode(),
                headers={HEADER: header, "x-request-id": "req_1", **(headers or {})},
            )

    async def bounded() -> httpx.Response:
        return await asyncio.wait_for(call(), 60)

    with ThreadPoolExecutor(1) as thread:  # the caller may be in an event loop
        return thread.submit(asyncio.run, bounded()).result()
