"""Every known field: what is refused, and under which name."""

from __future__ import annotations

import inspect
import json
from typing import Any

import pytest
from pydantic import ValidationError
from transformers import PreTrainedTokenizerBase

from server.api.errors import InvalidRequest
from server.api.schemas import ChatBody, parse
from server.api.templates import RESERVED_KWARGS
from tests.server.api.conftest import Client
from tests.server.api.fakes import TOKENIZER, FakeEngine

VOCABULARY = len(TOKENIZER.get_vocab())

TOOL: dict[str, Any] = {"type": "function", "function": {"name": "f"}}
STRICT: dict[str, Any] = {
    "type": "function",
    "function": {"name": "f", "strict": True, "parameters": {"type": "object", "not": {}}},
}


BOTH: list[tuple[dict[str, Any], str]] = [
    ({"model": None}, "model"),
    ({"model": 3}, "model"),
    ({"model": ""}, "model"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_tokens": 1.5}, "max_tokens"),
    ({"max_tokens": True}, "max_tokens"),
    ({"temperature": -0.1}, "temperature"),
    ({"temperature": 2.1}, "temperature"),
    ({"temperature": "1"}, "temperature"),
    ({"temperature": True}, "temperature"),
    ({"top_p": 1.1}, "top_p"),
    ({"top_p": -1}, "top_p"),
    ({"min_p": 2}, "min_p"),
    ({"top_k": -2}, "top_k"),
    ({"frequency_penalty": 2.1}, "frequency_penalty"),
    ({"presence_penalty": -2.1}, "presence_penalty"),
    ({"repetition_penalty": 0}, "repetition_penalty"),
    ({"repetition_penalty": 1e-300}, "repetition_penalty"),
    ({"logit_bias": {"1": 101}}, "logit_bias.1"),
    ({"logit_bias": {"one": 1}}, "logit_bias.one"),
    ({"logit_bias": {"-1": 1}}, "logit_bias.-1"),
    ({"logit_bias": {str(VOCABULARY): 1}}, "logit_bias"),
    ({"logit_bias": [1]}, "logit_bias"),
    ({"logit_bias": {str(number): 1 for number in range(1001)}}, "logit_bias"),
    ({"seed": 2**63}, "seed"),
    ({"seed": -(2**63) - 1}, "seed"),
    ({"seed": 10**400}, "seed"),
    ({"seed": 1.5}, "seed"),
    ({"stop": ""}, "stop.0"),
    ({"stop": 3}, "stop"),
    ({"stop": ["a", "b", "c", "d", "e"]}, "stop"),
    ({"stop": ["a", 3]}, "stop.1"),
    ({"stop": "a" * 1001}, "stop.0"),
    ({"stop_token_ids": [VOCABULARY]}, "stop_token_ids"),
    ({"stop_token_ids": [-1]}, "stop_token_ids.0"),
    ({"stop_token_ids": 3}, "stop_token_ids"),
    ({"min_tokens": -1}, "min_tokens"),
    ({"min_tokens": 5, "max_tokens": 4}, "min_tokens"),
    ({"ignore_eos": 1}, "ignore_eos"),
    ({"stream": "yes"}, "stream"),
    ({"stream_options": {"include_usage": True}}, "stream_options"),
    ({"stream": True, "stream_options": {"include_usage": 1}}, "stream_options.include_usage"),
    ({"stream": True, "stream_options": 1}, "stream_options"),
    ({"user": 3}, "user"),
    ({"n": 0}, "n"),
    ({"n": True}, "n"),
    ({"n": 101}, "n"),
    ({"n": 129}, "n"),
    ({"metadata": {"a": 1}}, "metadata.a"),
    ({"metadata": []}, "metadata"),
    ({"service_tier": "priority"}, "service_tier"),
    ({"safety_identifier": 1}, "safety_identifier"),
    ({"prompt_cache_key": 1}, "prompt_cache_key"),
    ({"prompt_cache_retention": 1}, "prompt_cache_retention"),
    (
        {"stream": True, "stream_options": {"include_obfuscation": True}},
        "stream_options.include_obfuscation",
    ),
    (
        {"stream": True, "stream_options": {"continuous_usage_stats": True}},
        "stream_options.continuous_usage_stats",
    ),
    ({"add_special_tokens": False}, "add_special_tokens"),
    ({"allowed_token_ids": [1]}, "allowed_token_ids"),
    ({"bad_words": ["x"]}, "bad_words"),
    ({"include_stop_str_in_output": True}, "include_stop_str_in_output"),
    ({"length_penalty": 2.0}, "length_penalty"),
    ({"priority": 1}, "priority"),
    ({"prompt_logprobs": 1}, "prompt_logprobs"),
    ({"return_token_ids": True}, "return_token_ids"),
    ({"return_tokens_as_token_ids": True}, "return_tokens_as_token_ids"),
    ({"skip_special_tokens": False}, "skip_special_tokens"),
    ({"spaces_between_special_tokens": False}, "spaces_between_special_tokens"),
    ({"truncate_prompt_tokens": 3}, "truncate_prompt_tokens"),
    ({"use_beam_search": True}, "use_beam_search"),
    ({"guided_json": []}, "guided_json"),
    ({"guided_json": "[1"}, "guided_json"),
    ({"guided_json": "[" * 100_000}, "guided_json"),
    ({"guided_json": {"not": {}}}, "guided_json"),
    ({"guided_regex": "a("}, "guided_regex"),
    ({"guided_regex": ""}, "guided_regex"),
    ({"guided_regex": "a", "ignore_eos": True}, "ignore_eos"),
    ({"guided_choice": []}, "guided_choice"),
    ({"guided_choice": ["a"], "guided_regex": "a"}, "guided_choice"),
    ({"guided_grammar": "a"}, "guided_grammar"),
    ({"structured_outputs": {"regex": "("}}, "structured_outputs.regex"),
    ({"structured_outputs": {"structural_tag": "a"}}, "structured_outputs.structural_tag"),
]

USER = {"role": "user", "content": "x"}
CHAT: list[tuple[dict[str, Any], str]] = [
    ({"messages": None}, "messages"),
    ({"messages": []}, "messages"),
    ({"messages": "hi"}, "messages"),
    ({"messages": [USER] * 10_001}, "messages"),
    ({"messages": ["hi"]}, "messages.0"),
    ({"messages": [USER, {"role": "user"}]}, "messages.1.content"),
    ({"messages": [{"role": "user", "content": None}]}, "messages.0.content"),
    ({"messages": [{"role": "user", "content": []}]}, "messages.0.content"),
    ({"messages": [{"role": "user", "content": 3}]}, "messages.0.content"),
    ({"messages": [{"role": "user", "content": [3]}]}, "messages.0.content.0"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages.0.content.0"),
    ({"messages": [{"role": "user", "content": [{"type": []}]}]}, "messages.0.content.0.type"),
    ({"messages": [{"content": "x"}]}, "messages.0.role"),
    ({"messages": [{"role": "tool", "content": "x"}]}, "messages.0.tool_call_id"),
    ({"messages": [{"role": "function", "content": "x"}]}, "messages.0.role"),
    ({"messages": [{"role": "judge", "content": "x"}]}, "messages.0.role"),
    ({"messages": [{"role": {}, "content": "x"}]}, "messages.0.role"),
    ({"messages": [{**USER, "name": 3}]}, "messages.0.name"),
    ({"messages": [{"role": "assistant", "tool_calls": [{}]}]}, "messages.0.tool_calls.0.id"),
    ({"messages": [{"role": "assistant"}]}, "messages.0.content"),
    ({"messages": [{**USER, "tool_call_id": "x"}]}, "messages.0.tool_call_id"),
    ({"messages": [{**USER, "function_call": {}}]}, "messages.0.function_call"),
    ({"messages": [{**USER, "audio": {}}]}, "messages.0.audio"),
    ({"max_completion_tokens": 0}, "max_completion_tokens"),
    ({"max_completion_tokens": 3, "max_tokens": 4}, "max_tokens"),
    ({"logprobs": 1}, "logprobs"),
    ({"top_logprobs": 2}, "top_logprobs"),
    ({"logprobs": False, "top_logprobs": 0}, "top_logprobs"),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
    ({"chat_template_kwargs": []}, "chat_template_kwargs"),
    ({"chat_template_kwargs": {"chat_template": "x"}}, "chat_template_kwargs.chat_template"),
    ({"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs.messages"),
    ({"tools": [{}]}, "tools.0.type"),
    ({"tools": [{**TOOL, "type": "web_search"}]}, "tools.0.type"),
    ({"tools": [TOOL, TOOL]}, "tools"),
    ({"tools": [TOOL], "tool_choice": "maybe"}, "tool_choice"),
    (
        {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "g"}}},
        "tool_choice",
    ),
    ({"tools": [TOOL], "tool_choice": "required", "guided_regex": "a"}, "guided_regex"),
    ({"tools": [TOOL], "guided_regex": "a"}, "guided_regex"),
    ({"tools": [TOOL], "tool_choice": "required", "ignore_eos": True}, "ignore_eos"),
    ({"tools": [STRICT]}, "tools.0.function.parameters"),
    ({"tool_choice": "required"}, "tool_choice"),
    ({"parallel_tool_calls": 1}, "parallel_tool_calls"),
    ({"functions": [{}]}, "functions"),
    ({"function_call": {"name": "f"}}, "function_call"),
    ({"response_format": {"type": "xml"}}, "response_format"),
    ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
    (
        {"response_format": {"type": "json_object"}, "guided_regex": "a"},
        "guided_regex",
    ),
    ({"reasoning_effort": "low"}, "reasoning_effort"),
    ({"modalities": ["text", "audio"]}, "modalities"),
    ({"audio": {}}, "audio"),
    ({"prediction": {}}, "prediction"),
    ({"web_search_options": {}}, "web_search_options"),
    ({"store": True}, "store"),
    ({"verbosity": "low"}, "verbosity"),
    ({"documents": [{}]}, "documents"),
    ({"chat_template": "x"}, "chat_template"),
    ({"add_generation_prompt": False}, "add_generation_prompt"),
    ({"continue_final_message": True}, "continue_final_message"),
    ({"echo": True}, "echo"),
    ({"moderation": {}}, "moderation"),
]

COMPLETIONS: list[tuple[dict[str, Any], str]] = [
    ({"prompt": None}, "prompt"),
    ({"prompt": []}, "prompt"),
    ({"prompt": ""}, "prompt"),
    ({"prompt": 3}, "prompt"),
    ({"prompt": {}}, "prompt"),
    ({"prompt": ["a", 3]}, "prompt"),
    ({"prompt": ["a", ""]}, "prompt"),
    ({"prompt": [[1], []]}, "prompt"),
    ({"prompt": [1, True]}, "prompt"),
    ({"prompt": [VOCABULARY]}, "prompt"),
    ({"prompt": [[1], [-1]]}, "prompt"),
    ({"prompt": ["a"] * 101}, "prompt"),
    ({"logprobs": 6}, "logprobs"),
    ({"logprobs": True}, "logprobs"),
    ({"best_of": 0}, "best_of"),
    ({"best_of": 2, "n": 3}, "best_of"),
    ({"best_of": 2, "stream": True}, "best_of"),
    ({"best_of": 101}, "n"),
    ({"prompt": ["a"] * 51, "n": 2}, "prompt"),
    ({"echo": 1}, "echo"),
    ({"echo": True, "logprobs": 0}, "echo"),
    ({"suffix": "x"}, "suffix"),
    ({"suffix": 3}, "suffix"),
]

HARMLESS_CHAT: dict[str, Any] = {
    "metadata": {"topic": "x"},
    "service_tier": "auto",
    "user": "me",
    "safety_identifier": "me",
    "prompt_cache_key": "me",
    "prompt_cache_retention": "24h",
    "n": 1,
    "tools": [],
    "tool_choice": "auto",
    "parallel_tool_calls": False,
    "functions": [],
    "function_call": "none",
    "response_format": {"type": "text"},
    "modalities": ["text"],
    "store": False,
    "verbosity": "medium",
}


def refused(response: Any, param: str) -> None:
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert error["type"] == "invalid_request_error"
    assert error["param"] == param
    assert param.split(".")[0] in error["message"]
    assert len(error["message"]) < 400


@pytest.mark.parametrize(("fields", "param"), BOTH + CHAT, ids=lambda value: repr(value)[:60])
def test_chat_refuses(
    client: Client, engine: FakeEngine, fields: dict[str, Any], param: str
) -> None:
    refused(client.chat(**fields), param)
    assert engine.requests == []


@pytest.mark.parametrize(("fields", "param"), BOTH + COMPLETIONS, ids=lambda v: repr(v)[:60])
def test_completions_refuse(
    client: Client, engine: FakeEngine, fields: dict[str, Any], param: str
) -> None:
    refused(client.complete(**fields), param)
    assert engine.requests == []


@pytest.mark.parametrize(("name", "value"), HARMLESS_CHAT.items())
def test_harmless_values_are_accepted(client: Client, name: str, value: Any) -> None:
    assert client.chat(**{name: value}).status_code == 200
    assert client.chat(**{name: None}).status_code == 200


def test_harmless_values_of_completions(client: Client) -> None:
    assert client.complete(n=1, best_of=1, echo=False, suffix="").status_code == 200


LONG: list[dict[str, Any]] = [
    {"messages": [1] * 1000},
    {"messages": [{"role": "user", "content": [1] * 1000}]},
    {"messages": [USER], "stop": [1] * 1000},
    {"messages": [USER], "stop_token_ids": [-1] * 1000},
]


@pytest.mark.parametrize("fields", LONG, ids=lambda fields: str(list(fields)))
def test_only_the_first_bad_item_is_reported(fields: dict[str, Any]) -> None:
    """A body can hold millions of them."""
    with pytest.raises(InvalidRequest) as refusal:
        parse(ChatBody, json.dumps({"model": "tiny", **fields}).encode())
    assert isinstance(refusal.value.__cause__, ValidationError)
    assert refusal.value.__cause__.error_count() == 1


def test_all_arguments_of_a_template_are_reserved() -> None:
    arguments = inspect.signature(PreTrainedTokenizerBase.apply_chat_template).parameters
    assert set(arguments) - {"self", "kwargs"} <= RESERVED_KWARGS


def test_openai_messages_can_be_sent_back(client: Client) -> None:
    answer = client.chat().json()["choices"][0]["message"]
    empty = dict.fromkeys(("tool_calls", "function_call", "audio", "annotations"))
    messages = [USER, {**answer, **empty}, USER]
    assert client.chat(messages=messages).status_code == 200


@pytest.mark.parametrize("asked", [{"max_tokens": 200}, {"max_completion_tokens": 10**18}])
def test_too_many_tokens(client: Client, asked: dict[str, int]) -> None:
    error = client.chat(**asked).json()["error"]
    assert error["code"] == "context_length_exceeded"
    assert "maximum context length is 200 tokens" in error["message"]


def test_prompt_beyond_the_context(client: Client) -> None:
    assert client.chat("x" * 300).json()["error"]["code"] == "context_length_exceeded"
    assert client.complete("x" * 300).json()["error"]["code"] == "context_length_exceeded"
    assert client.complete("x" * 184).status_code == 200
    assert client.complete("x" * 185).status_code == 400
