"""The object `response` and its events, told from what the chat dialect says of the same job."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from server.api.chat import ChatDialect
from server.api.errors import Failure
from server.api.generation import Choice, Piece
from server.api.responses.output import Output
from server.api.responses.schemas import ResponsesBody
from server.api.streaming import Events, Usage, named_event

Keep = Callable[[dict[str, Any]], None]


class ResponsesDialect:
    """One response.  `keep` gets the whole document when it is complete."""

    LAST = b""  # the type of the last event says that it is

    def __init__(self, body: ResponsesBody, chat: ChatDialect, keep: Keep) -> None:
        self.body, self._chat, self._keep = body, chat, keep
        self._ids = chat.id.rpartition("-")[2]
        self.id = f"resp_{self._ids}"
        self._output = Output(lambda prefix, number: f"{prefix}_{self._ids}{number}")
        self._finish: str | None = None
        self._number = -1

    def document(self, choices: list[Choice], usage: Usage) -> dict[str, Any]:
        [choice] = self._chat.document(choices, usage)["choices"]
        for _ in self._output.take(choice["message"], choice["logprobs"]):
            pass
        self._finish = choice["finish_reason"]
        for _ in self._output.end(self._status):
            pass
        return self._complete(usage)

    def opening(self) -> Events:
        yield self._event("response.created", response=self._resource("in_progress"))
        yield self._event("response.in_progress", response=self._resource("in_progress"))

    def delta(self, piece: Piece) -> Events:
        return self._take(self._chat.delta(piece))

    def finish(self, piece: Piece) -> Events:
        return self._take(self._chat.finish(piece))

    def closing(self, usage: Usage) -> Events:
        yield from map(self._numbered, self._output.end(self._status))
        document = self._complete(usage)
        yield self._event(f"response.{self._status}", response=document)

    def failure(self, failure: Failure) -> Events:
        code = failure.code or failure.type
        error = {"code": code, "message": failure.message}
        yield self._event("error", **error, param=failure.param)
        yield self._event("response.failed", response={**self._resource("failed"), "error": error})

    def encode(self, event: dict[str, Any]) -> bytes:
        return named_event(event)

    def _take(self, chunks: Events) -> Events:
        for chunk in chunks:
            for choice in chunk["choices"]:
                self._finish = choice["finish_reason"] or self._finish
                events = self._output.take(choice["delta"], choice["logprobs"])
                yield from map(self._numbered, events)

    def _event(self, kind: str, **fields: Any) -> dict[str, Any]:
        return self._numbered({"type": kind, **fields})

    def _numbered(self, event: dict[str, Any]) -> dict[str, Any]:
        self._number += 1
        return {**event, "sequence_number": self._number}

    @property
    def _status(self) -> str:
        return "incomplete" if self._finish == "length" else "completed"

    def _complete(self, usage: Usage) -> dict[str, Any]:
        document = self._resource(self._status) | {"usage": _usage(usage)}
        self._keep(document)
        return document

    def _resource(self, status: str) -> dict[str, Any]:
        """The response as it is now.  `completed_at` stays open: a response has no clock but its request's."""
        body, defaults = self.body, self._chat.model.defaults
        incomplete = {"reason": "max_output_tokens"} if status == "incomplete" else None
        reasoning = body.reasoning
        return {
            "id": self.id,
            "object": "response",
            "created_at": self._chat.created,
            "completed_at": None,
            "status": status,
            "background": False,
            "error": None,
            "incomplete_details": incomplete,
            "instructions": body.instructions,
            "max_output_tokens": body.max_output_tokens,
            "max_tool_calls": None,
            "model": self._chat.model.id,
            "output": list(self._output.items),
            "parallel_tool_calls": body.parallel_tool_calls is not False,
            "previous_response_id": body.previous_response_id,
            "prompt_cache_key": body.prompt_cache_key,
            "reasoning": {
                "effort": reasoning.effort if reasoning else None,
                "summary": reasoning.summary if reasoning else None,
            },
            "safety_identifier": body.safety_identifier,
            "service_tier": "default",
            "store": body.stored,
            "temperature": defaults.temperature if body.temperature is None else body.temperature,
            "text": _text(body),
            "tool_choice": _choice(body),
            "tools": _tools(body),
            "top_logprobs": body.top_logprobs or 0,
            "top_p": defaults.top_p if body.top_p is None else body.top_p,
            "presence_penalty": body.presence_penalty or 0.0,
            "frequency_penalty": body.frequency_penalty or 0.0,
            "truncation": "disabled",
            "usage": None,
            "user": body.user,
            "metadata": body.metadata or {},
        }


def _usage(usage: Usage) -> dict[str, Any]:
    details = usage.get("completion_tokens_details") or {}
    return {
        "input_tokens": usage["prompt_tokens"],
        "input_tokens_details": {"cached_tokens": usage["prompt_tokens_details"]["cached_tokens"]},
        "output_tokens": usage["completion_tokens"],
        "output_tokens_details": {"reasoning_tokens": details.get("reasoning_tokens", 0)},
        "total_tokens": usage["total_tokens"],
    }


def _text(body: ResponsesBody) -> dict[str, Any]:
    asked = body.text.format if body.text else None
    if asked is None or asked.type != "json_schema":
        return {"format": {"type": asked.type if asked else "text"}, "verbosity": "medium"}
    named = {
        "type": "json_schema",
        "name": asked.name or "answer",
        "description": asked.description,
        "schema": asked.json_schema,
        "strict": bool(asked.strict),
    }
    return {"format": named, "verbosity": "medium"}


def _choice(body: ResponsesBody) -> Any:
    choice = body.tool_choice
    if choice is None or isinstance(choice, str):
        return choice or "auto"
    return {"type": "function", "name": choice.name}


def _tools(body: ResponsesBody) -> list[dict[str, Any]]:
    return [
        {
            "type": "function",
            "name": tool.name,
            "description": tool.description,
            "parameters": tool.parameters,
            "strict": tool.strict,
        }
        for tool in body.tools or ()
    ]
