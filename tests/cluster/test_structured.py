"""Constraints over real ranks: valid where asked for, the same over any number, and beside free requests."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import jsonschema
import pytest

from tests.cluster.harness import MODEL, Cluster, wait_until

Shared = Callable[[str], Cluster]

PERSON: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 20},
        "born": {"type": "integer", "minimum": 0, "maximum": 2100},
        "fields": {"type": "array", "items": {"enum": ["physics", "music"]}, "maxItems": 2},
    },
    "required": ["name", "born", "fields"],
    "additionalProperties": False,
}
WEATHER: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Current weather of a city",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "maxLength": 16},
                "unit": {"enum": ["celsius", "fahrenheit"]},
            },
            "required": ["city", "unit"],
            "additionalProperties": False,
        },
    },
}
FORMAT = {
    "type": "json_schema",
    "json_schema": {"name": "person", "schema": PERSON, "strict": True},
}
SOMEBODY = "Who was Albert Einstein? Answer as JSON."
IN_PARIS = "What is the weather in Paris?"

JSON: dict[str, Any] = {"response_format": FORMAT}
CALLS: dict[str, Any] = {
    "tools": [WEATHER],
    "tool_choice": "required",
    "parallel_tool_calls": False,
}
REQUESTS: list[tuple[str, dict[str, Any]]] = [
    (SOMEBODY, {**JSON, "temperature": 1.0, "seed": 3}),
    (IN_PARIS, CALLS),
    (SOMEBODY, {"max_tokens": 40}),
    ("Is the sky blue?", {"guided_choice": ["certainly", "never"]}),
    (SOMEBODY, {"max_tokens": 30, "temperature": 1.0, "seed": 5}),
    ("A number?", {"guided_regex": r"\+49 [0-9]{3} [0-9]{4}"}),
]


def body(text: str, **fields: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": text}]
    return {"model": MODEL, "messages": messages, "temperature": 0, "max_tokens": 400, **fields}


def chat(cluster: Cluster, text: str, **fields: Any) -> dict[str, Any]:
    """The choice of a chat request, but for what is new each time."""
    url = f"{cluster.url}/v1/chat/completions"
    response = httpx.post(url, json=body(text, **fields), timeout=300)
    assert response.status_code == 200, response.text
    choice: dict[str, Any] = response.json()["choices"][0]
    for call in choice["message"].get("tool_calls", []):
        assert call.pop("id").startswith("call_")
    return choice


def streamed(cluster: Cluster, text: str, **fields: Any) -> dict[str, Any]:
    """The same from a stream."""
    message: dict[str, Any] = {}
    arguments, finish = "", None
    url = f"{cluster.url}/v1/chat/completions"
    with httpx.stream("POST", url, json=body(text, stream=True, **fields), timeout=300) as response:
        for line in response.iter_lines():
            if not line.startswith("data: {"):
                continue
            [choice] = json.loads(line[6:])["choices"]
            finish = choice["finish_reason"]
            message["content"] = message.get("content", "") + choice["delta"].get("content", "")
            for call in choice["delta"].get("tool_calls", []):
                message["name"] = call["function"].get("name", message.get("name"))
                arguments += call["function"]["arguments"]
    return {**message, "arguments": arguments, "finish_reason": finish}


@pytest.fixture(scope="module")
def alone(shared: Shared) -> list[dict[str, Any]]:
    """What each of REQUESTS gives on one rank, one after the other."""
    return [chat(shared("one"), text, **fields) for text, fields in REQUESTS]


def test_outputs_are_valid(alone: list[dict[str, Any]]) -> None:
    jsonschema.validate(json.loads(alone[0]["message"]["content"]), PERSON)
    [call] = alone[1]["message"]["tool_calls"]
    parameters = WEATHER["function"]["parameters"]
    jsonschema.validate(json.loads(call["function"]["arguments"]), parameters)
    assert alone[1]["finish_reason"] == "tool_calls"
    assert alone[3]["message"]["content"] in ("certainly", "never")
    assert len(alone[5]["message"]["content"]) == 12
    assert [alone[n]["finish_reason"] for n in (0, 3, 5)] == ["stop"] * 3


def test_over_three_ranks_and_together_they_are_the_same(
    three: Cluster, alone: list[dict[str, Any]]
) -> None:
    with ThreadPoolExecutor(len(REQUESTS)) as pool:
        together = pool.map(lambda each: chat(three, each[0], **each[1]), REQUESTS)
        assert list(together) == alone
    wait_until(lambda: three.sequences() == [0] * 3, "all sequences are released")


def test_a_stream_says_the_same(three: Cluster, alone: list[dict[str, Any]]) -> None:
    (person, its), (weather, calls) = REQUESTS[:2]
    assert streamed(three, person, **its)["content"] == alone[0]["message"]["content"]
    told = streamed(three, weather, **calls)
    [call] = alone[1]["message"]["tool_calls"]
    assert {"name": told["name"], "arguments": told["arguments"]} == call["function"]
    assert told["finish_reason"] == "tool_calls"
    assert told["content"] == ""


def test_a_result_goes_back_and_a_bad_schema_harms_nobody(three: Cluster) -> None:
    call = chat(three, IN_PARIS, **CALLS)["message"]["tool_calls"][0]
    messages = [
        {"role": "user", "content": IN_PARIS},
        {"role": "assistant", "content": None, "tool_calls": [{**call, "id": "call_1"}]},
        {"role": "tool", "tool_call_id": "call_1", "content": "22 degrees, sunny"},
    ]
    choice = chat(three, "", messages=messages, tools=[WEATHER], max_tokens=30)
    assert choice["message"]["content"]
    url = f"{three.url}/v1/chat/completions"
    refused = httpx.post(url, json=body("x", guided_regex="("), timeout=60)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "guided_regex")
    assert chat(three, "A number?", guided_regex="[0-9]{2}")["finish_reason"] == "stop"
