"""POST /v1/completions"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from pipeline.request import FinishReason, GenerationRequest
from server.api import params
from server.api.errors import InvalidRequest
from server.api.generation import Choice, Job, Piece, SequenceSpec
from server.api.logprobs import completion_logprobs
from server.api.schemas import CompletionBody, parse
from server.api.service import ServedModel, Service
from server.api.streaming import Usage, streamed, whole
from server.api.templates import text_prompt


async def completions(request: Request) -> Response:
    service: Service = request.app.state.service
    raw = await service.bodies.read(request.headers, request.receive)
    body = await asyncio.to_thread(parse, CompletionBody, raw)
    service.note_unknown_fields(body.unknown_fields())
    model, generator = service.serving(body.model)
    if len(body.prompts) > service.max_concurrent_requests:
        message = f"At most {service.max_concurrent_requests} prompts can be served together."
        raise InvalidRequest(message, param="prompt")
    dialect = CompletionDialect(model, body)
    specs = await asyncio.to_thread(_specs, body, model, dialect.id)
    job = Job(service, model, generator, specs)
    if body.stream:
        return await streamed(request, job, dialect, service.keep_alive_interval)
    return await whole(request, job, dialect)


def _specs(body: CompletionBody, model: ServedModel, request_id: str) -> list[SequenceSpec]:
    params.check_stream_options(body)
    max_tokens = body.max_tokens or params.COMPLETION_MAX_TOKENS
    specs = []
    for index, prompt in enumerate(body.prompts):
        ids = _token_ids(prompt, model)
        request = GenerationRequest(
            id=f"{request_id}-{index}",
            prompt=tuple(ids),
            # Per prompt: without a seed in the request, each choice gets a random one of its own.
            params=params.sampling(body, model, params.completion_logprobs(body)),
            max_tokens=params.fit(ids, max_tokens, body, model, "prompt"),
        )
        specs.append(SequenceSpec(request, tuple(body.stop or ()), continues_prompt=True))
    return specs


def _token_ids(prompt: str | list[int], model: ServedModel) -> list[int]:
    if isinstance(prompt, str):
        return text_prompt(prompt, model)
    params.check_prompt_ids(prompt, model)
    return prompt


@dataclass
class CompletionDialect:
    """Object `text_completion`, the same for documents and chunks."""

    model: ServedModel
    body: CompletionBody
    id: str = field(default_factory=lambda: f"cmpl-{uuid.uuid4().hex}")
    created: int = field(default_factory=lambda: int(time.time()))

    def __post_init__(self) -> None:
        wanted = self.body.logprobs is not None
        self._vocabulary = self.model.vocabulary if wanted else None

    def document(self, choices: list[Choice], usage: Usage) -> dict[str, Any]:
        shown = [
            _choice(choice.index, choice.text, self._logprobs(choice), choice.finish)
            for choice in choices
        ]
        return {**self._head(), "choices": shown, "usage": usage}

    def opening(self) -> Iterable[dict[str, Any]]:
        return ()

    def delta(self, piece: Piece) -> dict[str, Any]:
        return self._chunk(_choice(piece.index, piece.text, self._logprobs(piece), None))

    def finish(self, index: int, reason: FinishReason) -> dict[str, Any]:
        return self._chunk(_choice(index, "", None, reason))

    def usage(self, usage: Usage) -> dict[str, Any] | None:
        if not self.body.include_usage:
            return None
        return {**self._head(), "choices": [], "usage": usage}

    def _chunk(self, choice: dict[str, Any]) -> dict[str, Any]:
        chunk = {**self._head(), "choices": [choice]}
        return {**chunk, "usage": None} if self.body.include_usage else chunk

    def _logprobs(self, part: Choice | Piece) -> dict[str, Any] | None:
        if self._vocabulary is None:
            return None
        return completion_logprobs(part.spans, self._vocabulary, with_top=bool(self.body.logprobs))

    def _head(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": "text_completion",
            "created": self.created,
            "model": self.model.id,
        }


def _choice(
    index: int, text: str, logprobs: dict[str, Any] | None, finish: FinishReason | None
) -> dict[str, Any]:
    return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish}
