"""POST /v1/chat/completions"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from pipeline.request import FinishReason, GenerationRequest
from server.api import params
from server.api.errors import Failure
from server.api.generation import Choice, Job, Piece, SequenceSpec
from server.api.logprobs import chat_logprobs
from server.api.reading import WholeTurn, whole_turn
from server.api.schemas import ChatBody, parse
from server.api.service import ServedModel, Service
from server.api.streaming import DONE, Events, Usage, data_event, streamed, whole
from server.api.turn import turn_of
from server.api.turn_parts import CallArguments, CallBegin, Content, Reasoning, TurnPart
from server.replay.journal import context
from server.replay.records import Context


async def chat_completions(request: Request) -> Response:
    service: Service = request.app.state.service
    raw = await service.bodies.read(request.headers, request.receive)
    body = await asyncio.to_thread(parse, ChatBody, raw)
    service.note_unknown_fields(body.unknown_fields())
    model, generator = service.serving(body.model)
    dialect = ChatDialect(model, body)
    specs = await service.texts.run(len(raw), chat_specs, body, service, model, dialect.id)
    job = Job(service, model, generator, specs, copies=len(specs))
    if body.stream:
        return await streamed(request, job, dialect, service.keep_alive_interval)
    return await whole(request, job, dialect)


def chat_specs(
    body: ChatBody, service: Service, model: ServedModel, request_id: str
) -> list[SequenceSpec]:
    """What to ask of the engine: one sequence for each choice, which all share one prompt.

    The sequences begin together, so all but the first start from what that one prefills.
    """
    params.check_stream_options(body)
    count = body.n or 1
    params.check_places(count, 1, service.max_concurrent_requests)
    logprobs, asked = params.chat_logprobs(body), params.chat_max_tokens(body)
    seeds = params.seeds(body.seed, count)
    turn = turn_of(body, model)
    sampling = [params.sampling(body, model, logprobs, seed, turn.constraint) for seed in seeds]
    max_tokens = params.fit(turn.prompt, asked, body, model, "messages")
    stops = tuple(body.stop or ())
    requests = [
        GenerationRequest(
            id=f"{request_id}-{index}", prompt=turn.prompt, params=each, max_tokens=max_tokens
        )
        for index, each in enumerate(sampling)
    ]
    return [
        SequenceSpec(request, stops, visible=turn.visible, reader=turn.reader)
        for request in requests
    ]


@dataclass
class ChatDialect:
    """Objects `chat.completion` and `chat.completion.chunk`."""

    LAST = DONE

    model: ServedModel
    body: ChatBody
    context: Context = field(default_factory=context)

    def __post_init__(self) -> None:
        self.id = f"chatcmpl-{self.context.nonce}"
        self.created = self.context.created
        self._vocabulary = self.model.vocabulary if self.body.logprobs else None
        self._called: set[int] = set()  # choices with tool calls

    def document(self, choices: list[Choice], usage: Usage) -> dict[str, Any]:
        shown = [
            {
                "index": choice.index,
                "message": message_of(whole_turn(choice.parts)),
                "logprobs": self._logprobs(choice),
                "finish_reason": finish_reason(choice.finish, called=_calls(choice.parts)),
            }
            for choice in choices
        ]
        return {**self._head("chat.completion"), "choices": shown, "usage": usage}

    def opening(self) -> Events:
        return [
            self._chunk(index, {"role": "assistant", "content": ""})
            for index in range(self.body.n or 1)
        ]

    def delta(self, piece: Piece) -> Events:
        logprobs = self._logprobs(piece)
        if _calls(piece.parts):
            self._called.add(piece.index)
        for part in piece.parts or (Content(""),):
            yield self._chunk(piece.index, delta_of(part), logprobs=logprobs)
            logprobs = None  # of the whole piece; said once

    def finish(self, piece: Piece) -> Events:
        if _calls(piece.parts):
            self._called.add(piece.index)
        reason = finish_reason(piece.finish, called=piece.index in self._called)
        yield self._chunk(piece.index, {}, finish=reason)

    def closing(self, usage: Usage) -> Events:
        if self.body.include_usage:
            yield {**self._head("chat.completion.chunk"), "choices": [], "usage": usage}

    def failure(self, failure: Failure) -> Events:
        yield failure.body()

    def encode(self, event: dict[str, Any]) -> bytes:
        return data_event(event)

    def _chunk(
        self,
        index: int,
        delta: dict[str, Any],
        logprobs: dict[str, Any] | None = None,
        finish: str | None = None,
    ) -> dict[str, Any]:
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish}
        chunk = {**self._head("chat.completion.chunk"), "choices": [choice]}
        return {**chunk, "usage": None} if self.body.include_usage else chunk

    def _logprobs(self, part: Choice | Piece) -> dict[str, Any] | None:
        return chat_logprobs(part.spans, self._vocabulary) if self._vocabulary else None

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model.id}


def _calls(parts: Iterable[TurnPart]) -> bool:
    return any(isinstance(part, CallBegin) for part in parts)


def finish_reason(reason: FinishReason | None, *, called: bool) -> str | None:
    """Why a choice ended, in the words of the API."""
    return "tool_calls" if called and reason == "stop" else reason


def delta_of(part: TurnPart) -> dict[str, Any]:
    """What a chunk says of a part."""
    if isinstance(part, Content):
        return {"content": part.text}
    if isinstance(part, Reasoning):
        return {"reasoning_content": part.text}
    if isinstance(part, CallArguments):
        return {"tool_calls": [{"index": part.index, "function": {"arguments": part.text}}]}
    function = {"name": part.name, "arguments": ""}
    call = {"index": part.index, "id": part.id, "type": "function", "function": function}
    return {"tool_calls": [call]}


def message_of(turn: WholeTurn) -> dict[str, Any]:
    """The message of a whole choice; its content is null where there are only calls."""
    message: dict[str, Any] = {
        "role": "assistant",
        "content": turn.content if turn.content or not turn.calls else None,
        "refusal": None,
        "annotations": [],
    }
    if turn.reasoning:
        message["reasoning_content"] = turn.reasoning
    if turn.calls:
        message["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": call.arguments},
            }
            for call in turn.calls
        ]
    return message
