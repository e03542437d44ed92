"""A process with the real HTTP side over an engine that makes tokens by the clock: what the gateway costs.

    python -m benchlib.gateway PORT

The model is the demo model's tokenizer, without weights.  How a request is served follows from its max_tokens:
IDLE: one token, then nothing.  Else as many tokens, one each 1/rate seconds; the rate, per second, is the seed
of the request, and 0 stands for as fast as it goes.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncGenerator

from pipeline.demo_model import ensure_demo_model
from pipeline.request import GenerationRequest, TokenEvent
from server import descriptors
from server.api.app import create_app
from server.api.service import ServedModel, Service
from server.api.tokenizer import load_tokenizer
from server.node.serve import Listener, start_servers

MODEL = "paced"
IDLE = 7  # max_tokens of a stream that stays silent
WORDS = " the quick brown fox jumps over the lazy dog"
VOCABULARY = 49_152


class PacedEngine:
    """See the module's text.  Implements pipeline.request.Generator."""

    def __init__(self, tokens: list[int]) -> None:
        self._tokens = tokens

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[TokenEvent, None]:
        if request.max_tokens == IDLE:
            yield TokenEvent(self._tokens[0])
            await asyncio.Event().wait()
        rate, began = request.params.seed, time.monotonic()
        for number in range(request.max_tokens):
            wait = began + number / rate - time.monotonic() if rate else 0.0
            await asyncio.sleep(max(wait, 0.0))
            last = number == request.max_tokens - 1
            token = self._tokens[number % len(self._tokens)]
            yield TokenEvent(token, "length" if last else None)


async def serve(port: int) -> None:
    """Serve until the process is killed."""
    descriptors.raise_limit()
    tokenizer = load_tokenizer(ensure_demo_model(), {}, False)
    model = ServedModel(
        id=MODEL,
        tokenizer=tokenizer,
        max_model_len=1 << 20,
        created=0,
        end_tokens=tuple(tokenizer.eos_token_ids),
        vocab_size=VOCABULARY,
    )
    engine = PacedEngine(tokenizer.encode(WORDS, add_special_tokens=False))
    service = Service(lambda: None, model, engine, max_concurrent_requests=1 << 20)
    servers = await start_servers([Listener("gateway", create_app(service), "127.0.0.1", port)])
    print("ready", flush=True)
    await servers.wait()


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1])))
