"""POST /v1/completions"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from pipeline.request import FinishReason, GenerationRequest
from server.api import constraints, params
from server.api.errors import Failure, InvalidRequest
from server.api.generation import Choice, Job, Piece, SequenceSpec
from server.api.infill import infill_prompt
from server.api.logprobs import completion_logprobs
from server.api.schemas import CompletionBody, parse
from server.api.service import ServedModel, Service
from server.api.streaming import DONE, Events, Usage, data_event, streamed, whole
from server.api.templates import text_prompt
from server.replay.journal import context
from server.replay.records import Context


async def completions(request: Request) -> Response:
    service: Service = request.app.state.service
    raw = await service.bodies.read(request.headers, request.receive)
    body = await asyncio.to_thread(parse, CompletionBody, raw)
    service.note_unknown_fields(body.unknown_fields())
    model, generator = service.serving(body.model)
    copies = _copies(body, service)
    dialect = CompletionDialect(model, body)
    specs = await service.texts.run(len(raw), _specs, body, model, dialect.id, copies)
    job = Job(service, model, generator, specs, copies)
    if body.stream:
        return await streamed(request, job, dialect, service.keep_alive_interval)
    return await whole(request, job, dialect)


def _copies(body: CompletionBody, service: Service) -> int:
    """Sequences for each prompt; raises InvalidRequest for numbers that contradict each other."""
    choices = body.n or 1
    copies = body.best_of or choices
    if copies < choices:
        raise InvalidRequest(f"best_of ({copies}) is less than n ({choices}).", param="best_of")
    if body.stream and copies > choices:
        message = "best_of can't be streamed: which are the best is known at the end."
        raise InvalidRequest(message, param="best_of")
    limit = service.max_concurrent_requests
    params.check_places(len(body.prompts) * copies, len(body.prompts), limit)
    return copies


def _specs(
    body: CompletionBody, model: ServedModel, request_id: str, copies: int
) -> list[SequenceSpec]:
    params.check_stream_options(body)
    if body.echo and body.logprobs is not None:
        message = (
            "echo: log probabilities of the prompt are not computed; leave out echo or logprobs."
        )
        raise InvalidRequest(message, param="echo", code="unsupported_parameter")
    return [
        spec
        for index, prompt in enumerate(body.prompts)
        for spec in _prompt_specs(prompt, body, model, request_id, index, copies)
    ]


def _prompt_specs(
    prompt: str | list[int],
    body: CompletionBody,
    model: ServedModel,
    request_id: str,
    index: int,
    copies: int,
) -> list[SequenceSpec]:
    """The sequences of prompt `index`."""
    ids = tuple(_token_ids(prompt, body, model))
    max_tokens = params.fit(
        ids, body.max_tokens or params.COMPLETION_MAX_TOKENS, body, model, "prompt"
    )
    # Which of more candidates are the best is told by their log probabilities.
    logprobs = max(params.completion_logprobs(body), 0 if copies > (body.n or 1) else -1)
    constraint = constraints.of_format(body, model)
    requests = [
        GenerationRequest(
            id=f"{request_id}-{index}-{copy}",
            prompt=ids,
            params=params.sampling(body, model, logprobs, seed, constraint),
            max_tokens=max_tokens,
        )
        for copy, seed in enumerate(params.seeds(body.seed, copies, index * copies))
    ]
    stops, continues = tuple(body.stop or ()), not body.suffix
    return [SequenceSpec(request, stops, continues_prompt=continues) for request in requests]


def _token_ids(prompt: str | list[int], body: CompletionBody, model: ServedModel) -> list[int]:
    if isinstance(prompt, str):
        ids = text_prompt(prompt, model)
    else:
        params.check_ids(prompt, model, "prompt")
        ids = prompt
    return infill_prompt(ids, body.suffix, model) if body.suffix else ids


@dataclass
class CompletionDialect:
    """Object `text_completion`, the same for documents and chunks."""

    LAST = DONE

    model: ServedModel
    body: CompletionBody
    context: Context = field(default_factory=context)

    def __post_init__(self) -> None:
        self.id = f"cmpl-{self.context.nonce}"
        self.created = self.context.created
        wanted = self.body.logprobs is not None
        self._vocabulary = self.model.vocabulary if wanted else None

    def document(self, choices: list[Choice], usage: Usage) -> dict[str, Any]:
        shown = [
            _choice(
                index,
                self._echo(index) + choice.text,
                self._logprobs(choice),
                choice.finish,
            )
            for index, choice in enumerate(self._best(choices))
        ]
        return {**self._head(), "choices": shown, "usage": usage}

    def opening(self) -> Events:
        if self.body.echo:
            for index in range(len(self.body.prompts) * (self.body.n or 1)):
                yield self._chunk(_choice(index, self._echo(index), None, None))

    def delta(self, piece: Piece) -> Events:
        yield self._chunk(_choice(piece.index, piece.text, self._logprobs(piece), None))

    def finish(self, piece: Piece) -> Events:
        yield self._chunk(_choice(piece.index, "", None, piece.finish))

    def closing(self, usage: Usage) -> Events:
        if self.body.include_usage:
            yield {**self._head(), "choices": [], "usage": usage}

    def failure(self, failure: Failure) -> Events:
        yield failure.body()

    def encode(self, event: dict[str, Any]) -> bytes:
        return data_event(event)

    def _best(self, choices: list[Choice]) -> list[Choice]:
        """The n best of the candidates for each prompt, the best one first where there are more than n."""
        wanted, copies = self.body.n or 1, len(choices) // len(self.body.prompts)
        if copies == wanted:
            return choices
        best = []
        for first in range(0, len(choices), copies):
            candidates = choices[first : first + copies]
            # sorted is stable: of equals, the earlier one.
            best += sorted(candidates, key=lambda choice: -choice.mean_logprob)[:wanted]
        return best

    def _echo(self, index: int) -> str:
        """The prompt of a choice as text, if it is to come first."""
        if not self.body.echo:
            return ""
        prompt = self.body.prompts[index // (self.body.n or 1)]
        return prompt if isinstance(prompt, str) else self.model.tokenizer.decode(prompt)

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
