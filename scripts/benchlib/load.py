"""Load on a server: closed (a fixed number of requests at a time) or open (arrivals that don't wait)."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from benchlib.client import Client, Outcome, Request
from benchlib.servers import LocalServer, Server, ServerFailed
from benchlib.stats import percentiles

WARM_UP = Request("Once upon a time", 4)


@dataclass(frozen=True)
class Round:
    """All requests of one level of load, and the wall time from the first one sent to the last one ended."""

    outcomes: Sequence[Outcome]
    seconds: float

    def summary(self) -> dict[str, float | None]:
        """Rates over the whole wall time, ramp-up and ramp-down included; latencies in milliseconds.

        Tokens of failed requests don't count.  `short`: requests that ended before their length was reached.
        """
        good = [outcome for outcome in self.outcomes if outcome.error is None]
        first = [1e3 * o.first_token for o in good if o.first_token is not None]
        gaps = [1e3 * gap for outcome in good for gap in outcome.gaps]
        tokens = sum(outcome.tokens for outcome in good)
        return {
            "requests": float(len(self.outcomes)),
            "failed": float(len(self.outcomes) - len(good)),
            "short": float(sum(outcome.finish != "length" for outcome in good)),
            "tokens": float(tokens),
            "prompt_tokens": float(sum(outcome.prompt_tokens for outcome in good)),
            "seconds": self.seconds,
            "requests_per_s": len(good) / self.seconds,
            "tokens_per_s": tokens / self.seconds,
            **percentiles(first, "first_token_ms"),
            **percentiles(gaps, "inter_token_ms"),
        }

    @property
    def errors(self) -> dict[str, int]:
        """How often each error came."""
        texts = [outcome.error for outcome in self.outcomes if outcome.error is not None]
        return {text: texts.count(text) for text in dict.fromkeys(texts)}


async def closed_loop(client: Client, requests: Sequence[Request], concurrency: int) -> Round:
    """Send all requests, `concurrency` at a time: each one that ends makes room for the next."""
    waiting = iter(requests)
    outcomes: list[Outcome] = []

    async def work() -> None:
        outcomes.extend([await client.run(request) for request in waiting])

    started = time.perf_counter()
    await asyncio.gather(*(work() for _ in range(concurrency)))
    return Round(outcomes, time.perf_counter() - started)


def arrival_times(count: int, rate: float, seed: int) -> list[float]:
    """Seconds at which requests of a Poisson process of `rate` per second are due; the first is at 0."""
    choose = random.Random(seed)
    return list(accumulate((choose.expovariate(rate) for _ in range(count - 1)), initial=0.0))


async def open_loop(client: Client, requests: Sequence[Request], rate: float, seed: int) -> Round:
    """Send each request when it is due, whatever became of the earlier ones; latency counts from then."""
    started = time.perf_counter()

    async def one(request: Request, due: float) -> Outcome:
        await asyncio.sleep(started + due - time.perf_counter())
        return await client.run(request, started + due)

    due = arrival_times(len(requests), rate, seed)
    outcomes = await asyncio.gather(*map(one, requests, due))
    return Round(outcomes, time.perf_counter() - started)


async def warm_up(server: Server, chat: bool = False) -> None:
    """A first request waits for loading and compilation.  Raises ServerFailed if it is not answered."""
    async with Client(server.url, server.model, chat) as client:
        outcome = await client.run(WARM_UP)
    if outcome.error is not None:
        reason = f"the first request failed: {outcome.error}"
        if isinstance(server, LocalServer):
            raise server.failed(reason)
        raise ServerFailed(f"{server.label}: {reason}")
