"""Tools and thinking in chat completions: the prompt, the constraint, the message, and the same as a stream."""

from __future__ import annotations

import json
from typing import Any

import pytest
from mlx_lm.tokenizer_utils import TokenizerWrapper
from mlx_lm.tool_parsers import json_tools
from tokenizers import AddedToken

from server.api.service import Service
from tests.server.api.conftest import Client, events
from tests.server.api.fakes import (
    CHAT_TEMPLATE,
    TOKENIZER,
    FakeEngine,
    Script,
    make_service,
    make_tokenizer,
)

TOOL: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "How it is outside",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Rome"}}\n</tool_call>'
OPENS = "{% if open_thinking %}<think>{% endif %}"
TEMPLATE = (
    "{% for t in tools or [] %}[{{ t.function.name }}]{% endfor %}"
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}"
    "{% for c in m.tool_calls or [] %}!{{ c.function.name }}={{ c.function.arguments.city }}{% endfor %}"
    "{% if m.name %}@{{ m.name }}{% endif %}</s>{% endfor %}"
    "{% if not enable_thinking %}<think></think>{% endif %}" + OPENS
)


def thinking_tokenizer() -> TokenizerWrapper:
    """A model that thinks, and whose calls are marked by tokens."""
    plain = make_tokenizer(TEMPLATE)._tokenizer
    marks = ["<tool_call>", "</tool_call>", "<think>", "</think>"]
    plain.add_tokens([AddedToken(mark, special=number > 1) for number, mark in enumerate(marks)])
    return TokenizerWrapper(
        plain,
        tool_call_start="<tool_call>",
        tool_call_end="</tool_call>",
        tool_parser=json_tools.parse_tool_call,
    )


THINKER = thinking_tokenizer()


@pytest.fixture(params=["generic", "thinker"])
def tokenizer(request: pytest.FixtureRequest) -> TokenizerWrapper:
    return TOKENIZER if request.param == "generic" else THINKER


@pytest.fixture
def service(engine: FakeEngine, tokenizer: TokenizerWrapper) -> Service:
    return make_service(engine, tokenizer=tokenizer, max_model_len=4000)


def ids(tokenizer: TokenizerWrapper, text: str) -> list[int]:
    return list(tokenizer.encode(text, add_special_tokens=False))


def chat(client: Client, engine: FakeEngine, tokenizer: Any, said: str, **fields: Any) -> Any:
    """The choice of a model that says `said`, checked to be the same as a stream."""
    engine.script = Script(ids(tokenizer, said))
    response = client.chat(**{"tools": [TOOL], **fields})
    assert response.status_code == 200, response.text
    choice = response.json()["choices"][0]
    chunks = events(client.chat(**{"tools": [TOOL], "stream": True, **fields}))
    streamed = put_together([chunk["choices"][0] for chunk in chunks])
    for call in choice["message"].get("tool_calls", []):
        call.pop("id")
    assert streamed == {
        "message": {
            k: v for k, v in choice["message"].items() if k not in ("refusal", "annotations")
        },
        "finish_reason": choice["finish_reason"],
    }
    return choice


def put_together(choices: list[dict[str, Any]]) -> dict[str, Any]:
    """A message from its deltas, as clients do it."""
    message: dict[str, Any] = {"content": ""}
    for choice in choices:
        delta = dict(choice["delta"])
        for call in delta.pop("tool_calls", []):
            calls = message.setdefault("tool_calls", [])
            if call["index"] == len(calls):
                assert call["id"].startswith("call_")
                calls.append(
                    {"type": call["type"], "function": {"arguments": "", **call["function"]}}
                )
            else:
                calls[call["index"]]["function"]["arguments"] += call["function"]["arguments"]
        for name, text in delta.items():
            message[name] = text if name == "role" else message.get(name, "") + text
    message["content"] = message["content"] or (None if "tool_calls" in message else "")
    return {"message": message, "finish_reason": choices[-1]["finish_reason"]}


def accepts(service: Service, engine: FakeEngine, text: str) -> bool:
    """Whether the constraint of the last request allows `text` as a whole output."""
    assert service.model is not None
    constraint = engine.requests[-1].params.constraint
    assert constraint is not None
    tokens = ids(service.model.tokenizer, text)
    marks = constraint.after[0 if constraint.opening is None else 1 :]
    after = [token for mark in marks for token in mark]
    if after:
        if after != tokens[: len(after)]:
            return constraint.optional
        tokens = tokens[len(after) :]
    matcher = service.model.grammars.matcher(constraint)
    return matcher.try_consume_tokens(tokens) == len(tokens) and matcher.is_accepting()


def prompt(engine: FakeEngine, tokenizer: TokenizerWrapper) -> str:
    return str(tokenizer.decode(engine.requests[-1].prompt))


def test_a_call(client: Client, engine: FakeEngine, tokenizer: TokenizerWrapper) -> None:
    choice = chat(client, engine, tokenizer, CALL)
    function = {"name": "weather", "arguments": '{"city": "Rome"}'}
    assert choice["message"]["tool_calls"] == [{"type": "function", "function": function}]
    assert choice["message"]["content"] is None
    assert choice["finish_reason"] == "tool_calls"
    assert "weather" in prompt(engine, tokenizer)


def test_a_text_with_two_calls(client: Client, engine: FakeEngine, tokenizer: Any) -> None:
    choice = chat(client, engine, tokenizer, f"Let me see.\n{CALL}\n{CALL}")
    assert choice["message"]["content"] == "Let me see."
    assert len(choice["message"]["tool_calls"]) == 2


def test_an_answer_without_calls(
    client: Client, engine: FakeEngine, tokenizer: TokenizerWrapper
) -> None:
    choice = chat(client, engine, tokenizer, "hello < world")
    assert choice["message"] == {
        "role": "assistant",
        "content": "hello < world",
        "refusal": None,
        "annotations": [],
    }
    assert choice["finish_reason"] == "stop"


def test_a_call_that_was_cut_off(client: Client, engine: FakeEngine, tokenizer: Any) -> None:
    enough = len(ids(tokenizer, CALL[: CALL.index("ome")]))
    choice = chat(client, engine, tokenizer, CALL, max_tokens=enough)
    assert choice["finish_reason"] == "length"
    [call] = choice["message"]["tool_calls"]
    assert call["function"]["arguments"] == '{"city": "R'


def test_without_tools_nothing_is_a_call(
    client: Client, engine: FakeEngine, tokenizer: TokenizerWrapper
) -> None:
    for fields in ({"tools": None}, {"tool_choice": "none"}):
        choice = chat(client, engine, tokenizer, CALL, **fields)
        assert "tool_calls" not in choice["message"]
        assert "weather" not in prompt(engine, tokenizer)
        assert engine.requests[-1].params.constraint is None


@pytest.mark.parametrize(
    "choice", ["required", {"type": "function", "function": {"name": "weather"}}]
)
def test_forced_calls(
    client: Client, service: Service, engine: FakeEngine, tokenizer: Any, choice: Any
) -> None:
    chat(client, engine, tokenizer, CALL, tool_choice=choice)
    assert accepts(service, engine, CALL)
    assert not accepts(service, engine, "hello")
    assert not accepts(service, engine, CALL.replace("city", "town"))
    assert accepts(service, engine, CALL + CALL) is (choice == "required")


def test_calls_that_may_be_made_are_held_to_their_schema(
    client: Client, service: Service, engine: FakeEngine, tokenizer: TokenizerWrapper
) -> None:
    chat(client, engine, tokenizer, CALL)
    assert accepts(service, engine, CALL)
    assert accepts(service, engine, CALL + CALL)
    assert accepts(service, engine, "hello")
    assert not accepts(service, engine, CALL.replace("city", "town"))
    chat(client, engine, tokenizer, CALL, parallel_tool_calls=False)
    assert accepts(service, engine, CALL)
    assert not accepts(service, engine, CALL + CALL)


def test_an_answer_by_schema_or_a_call(
    client: Client, service: Service, engine: FakeEngine, tokenizer: TokenizerWrapper
) -> None:
    chat(client, engine, tokenizer, "{}", response_format={"type": "json_object"})
    assert [accepts(service, engine, text) for text in ("{}", CALL, "hello")] == [True, True, False]


def test_a_schema_that_can_not_be_held_is_any_object_unless_it_is_strict(
    client: Client, service: Service, engine: FakeEngine, tokenizer: TokenizerWrapper
) -> None:
    function = {"name": "weather", "parameters": {"type": "object", "$ref": "#/nowhere"}}
    tools = [{"type": "function", "function": function}]
    chat(client, engine, tokenizer, CALL, tools=tools, tool_choice="required")
    assert accepts(service, engine, CALL)
    strict = {"type": "function", "function": {**function, "name": "other", "strict": True}}
    error = client.chat(tools=[TOOL, strict]).json()["error"]
    assert error["param"] == "tools.1.function.parameters"


def test_ids_come_from_the_response(client: Client, engine: FakeEngine, tokenizer: Any) -> None:
    engine.script = Script(ids(tokenizer, CALL + CALL))
    found = [client.chat(tools=[TOOL], n=2).json() for _ in range(2)]
    names = [
        call["id"] for body in found for c in body["choices"] for call in c["message"]["tool_calls"]
    ]
    assert len(set(names)) == 8


def conversation(**call: Any) -> list[dict[str, Any]]:
    function = {"name": "weather", "arguments": '{"city": "Rome"}'}
    return [
        {"role": "user", "content": "How is Rome?"},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": "call_1", "type": "function", "function": function, **call}],
        },
        {"role": "tool", "tool_call_id": "call_1", "content": "sunny"},
    ]


def test_results_go_back_to_the_model(client: Client, engine: FakeEngine, tokenizer: Any) -> None:
    chat(client, engine, tokenizer, "hello", messages=conversation())
    text = prompt(engine, tokenizer)
    if tokenizer is THINKER:
        assert "!weather=Rome" in text
        assert "sunny@weather" in text
    else:
        assert (
            '<tool_call>\n{"name": "weather", "arguments": {"city": "Rome"}}\n</tool_call>' in text
        )
        assert "<tool_response>\nsunny\n</tool_response>" in text


@pytest.mark.parametrize("tokenizer", [THINKER], ids=["thinker"])
class TestThinking:
    def test_thinking_is_told_apart(
        self, client: Client, engine: FakeEngine, tokenizer: Any
    ) -> None:
        choice = chat(client, engine, tokenizer, f"<think>\nwell\n</think>\n\n{CALL}")
        assert choice["message"]["reasoning_content"] == "well"
        assert choice["message"]["content"] is None
        usage = client.chat(tools=[TOOL]).json()["usage"]
        thought = len(ids(tokenizer, "<think>\nwell\n</think>"))
        assert usage["completion_tokens_details"]["reasoning_tokens"] == thought

    def test_the_template_may_begin_it(
        self, client: Client, engine: FakeEngine, tokenizer: Any
    ) -> None:
        kwargs = {"chat_template_kwargs": {"open_thinking": True}}
        choice = chat(client, engine, tokenizer, "well</think>Yes", **kwargs)
        assert choice["message"]["reasoning_content"] == "well"
        assert choice["message"]["content"] == "Yes"

    def test_a_constraint_holds_the_answer_only(
        self, client: Client, service: Service, engine: FakeEngine, tokenizer: Any
    ) -> None:
        end, start = ids(tokenizer, "</think>")[0], ids(tokenizer, "<think>")[0]
        asked: dict[str, Any] = {"tools": None, "response_format": {"type": "json_object"}}
        chat(client, engine, tokenizer, "<think>a</think>{}", **asked)
        constraint = engine.requests[-1].params.constraint
        assert constraint is not None
        assert (constraint.after, constraint.opening) == (((end,),), start)
        kwargs = {"chat_template_kwargs": {"open_thinking": True}}
        chat(client, engine, tokenizer, "a</think>{}", **asked, **kwargs)
        constraint = engine.requests[-1].params.constraint
        assert constraint is not None
        assert (constraint.after, constraint.opening) == (((end,),), None)
        chat(client, engine, tokenizer, "{}", **asked, reasoning_effort="none")
        constraint = engine.requests[-1].params.constraint
        assert constraint is not None
        assert constraint.after == ()

    @pytest.mark.parametrize(
        ("fields", "thinks"),
        [
            ({}, True),
            ({"reasoning_effort": "low"}, True),
            ({"reasoning_effort": "none"}, False),
            ({"chat_template_kwargs": {"enable_thinking": False}}, False),
        ],
    )
    def test_effort(
        self, client: Client, engine: FakeEngine, tokenizer: Any, fields: Any, thinks: bool
    ) -> None:
        assert client.chat(**fields).status_code == 200
        assert prompt(engine, tokenizer).endswith("<think></think>") is not thinks


@pytest.mark.parametrize("tokenizer", [TOKENIZER], ids=["generic"])
@pytest.mark.parametrize(("effort", "status"), [("none", 200), ("minimal", 200), ("high", 400)])
def test_a_model_that_does_not_think_can_not_think_more(
    client: Client, tokenizer: Any, effort: str, status: int
) -> None:
    response = client.chat(reasoning_effort=effort)
    assert response.status_code == status
    if status == 400:
        assert response.json()["error"]["param"] == "reasoning_effort"


def test_templates_of_the_tests_differ() -> None:
    assert "tools" in TEMPLATE
    assert "tools" not in CHAT_TEMPLATE
    assert json.loads(CALL.split("\n")[1])["name"] == "weather"
