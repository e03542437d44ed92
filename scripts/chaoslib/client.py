"""Sends one request and takes in everything that its answer consists of."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import httpx

from chaoslib.answers import Answer, Task

DEADLINE = 300.0  # seconds for a whole answer, faults and restarts included


async def ask(http: httpx.AsyncClient, task: Task, on_text: Callable[[], None]) -> Answer:
    """The answer; what goes wrong is its `error`. `on_text` is called for each piece of text."""
    answer = Answer()
    try:
        async with http.stream(
            "POST", "/v1/completions", json=task.body, timeout=DEADLINE
        ) as response:
            if response.status_code != httpx.codes.OK:
                await _refused(response, answer)
            elif task.stream:
                await _read_stream(response, answer, on_text)
            else:
                _take(json.loads(await response.aread()), answer, on_text)
    except httpx.HTTPError as error:
        answer.error = f"{type(error).__name__}: {error}"
    except BadAnswer as error:
        answer.error = str(error)
    return answer


class BadAnswer(Exception):
    """What came is no answer; the message says why."""


async def _refused(response: httpx.Response, answer: Answer) -> None:
    text = (await response.aread()).decode(errors="replace")
    if response.status_code == httpx.codes.SERVICE_UNAVAILABLE:
        answer.retry_after = float(response.headers["retry-after"])
    raise BadAnswer(f"status {response.status_code}: {text[:300]}")


async def _read_stream(
    response: httpx.Response, answer: Answer, on_text: Callable[[], None]
) -> None:
    ended = False
    async for line in response.aiter_lines():
        if not line.startswith("data:"):  # a comment, or what separates events
            continue
        if ended:
            raise BadAnswer("something came after [DONE]")
        data = line.removeprefix("data:").strip()
        if data == "[DONE]":
            ended = True
        else:
            _take(json.loads(data), answer, on_text)
    if not ended:
        raise BadAnswer("the stream ended without [DONE]")


def _take(part: dict[str, Any], answer: Answer, on_text: Callable[[], None]) -> None:
    """Enter a chunk, or a whole answer, which has the same fields."""
    if "error" in part:
        raise BadAnswer(f"an error in the answer: {part['error']}")
    answer.ids.add(part["id"])
    for choice in part["choices"]:
        if answer.finish is not None:
            raise BadAnswer("something came after the finish reason")
        if choice["text"]:
            answer.text += choice["text"]
            answer.arrivals.append(time.monotonic())
            on_text()
        if choice.get("logprobs"):
            answer.tokens += choice["logprobs"]["tokens"]
        answer.finish = choice["finish_reason"]
    if part.get("usage"):
        answer.usage = (part["usage"]["prompt_tokens"], part["usage"]["completion_tokens"])
