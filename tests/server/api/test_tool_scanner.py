"""Tool calls in a text: whole or in pieces the same, streamed where they are sure, text where they are none."""

from __future__ import annotations

import importlib
import json
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.api.reading import Call, TurnReader, WholeTurn, whole_turn
from server.api.tools.families import FORMS, Syntax, syntax_of
from server.api.tools.scanner import CallScanner
from server.api.tools.schemas import Tool
from server.api.turn_parts import CallArguments, Content, TurnPart
from tests.server.api.fakes import TOKENIZER

NAMES = ("get", "get_weather", "a-b.c")
TOOLS = [Tool.model_validate({"type": "function", "function": {"name": name}}) for name in NAMES]
GENERIC = syntax_of(TOKENIZER)


def family(name: str, chat_template: str = "") -> Syntax:
    """What is known of a family of mlx-lm."""
    parser = importlib.import_module(f"mlx_lm.tool_parsers.{name}")

    class Tokenizer:
        has_tool_calling = True
        tool_call_start, tool_call_end = parser.tool_call_start, parser.tool_call_end
        tool_parser = staticmethod(parser.parse_tool_call)

        def get_added_vocab(self) -> dict[str, int]:
            return {}

    tokenizer: Any = Tokenizer()
    tokenizer.chat_template = chat_template
    return syntax_of(tokenizer)


def scan(
    pieces: Sequence[str],
    syntax: Syntax = GENERIC,
    *,
    guaranteed: bool = False,
    most: int | None = None,
) -> WholeTurn:
    return whole_turn(parts_of(pieces, syntax, guaranteed=guaranteed, most=most))


def parts_of(pieces: Sequence[str], syntax: Syntax = GENERIC, **options: Any) -> list[TurnPart]:
    reader = TurnReader(scanner=CallScanner(syntax, TOOLS, str, **options))
    parts = [part for piece in pieces for part in reader.push(piece)]
    return [*parts, *reader.flush()]


def cut(text: str, places: Sequence[int]) -> list[str]:
    ends = [*sorted(place % (len(text) + 1) for place in places), len(text)]
    starts = [0, *ends[:-1]]
    return [text[start:end] for start, end in zip(starts, ends, strict=True)]


def call(name: str, arguments: str) -> str:
    return f'<tool_call>\n{{"name": "{name}", "arguments": {arguments}}}\n</tool_call>'


FRAGMENTS = st.sampled_from(
    [
        "<tool_call>",
        "</tool_call>",
        "<tool",
        "</",
        "\n",
        "  ",
        "hello",
        "{",
        "}",
        '{"name": "get", "arguments": {}}',
        '{"name": "get", "arguments": {"a": "}</tool_call>"}}',
        '{"name": "get", "arguments": {"a": NaN}}',
        '{"name": "get", "arguments": {"a": "\\ud800"}}',
        '{"name": "nobody", "arguments": {}}',
        call("get_weather", '{"city": "Å\\"\\\\", "n": [1, {"x": null}]}'),
        call("get", "{}"),
    ]
)
TEXTS = st.one_of(
    st.lists(FRAGMENTS, max_size=8).map("".join), st.text('<tol_ca>/{}\n "', max_size=40)
)
CUTS = st.lists(st.integers(0, 10_000), max_size=30)


@given(TEXTS, CUTS, st.booleans(), st.sampled_from([None, 1]))
def test_however_a_text_is_cut_it_says_the_same(
    text: str, places: list[int], guaranteed: bool, most: int | None
) -> None:
    options: dict[str, Any] = {"guaranteed": guaranteed, "most": most}
    assert scan(cut(text, places), **options) == scan([text], **options)
    assert scan(list(text), **options) == scan([text], **options)


@given(TEXTS, CUTS)
def test_arguments_are_json_and_nothing_else_is_lost(text: str, places: list[int]) -> None:
    turn = scan(cut(text, places))
    for each in turn.calls:
        assert isinstance(json.loads(each.arguments), dict)
        each.arguments.encode()
    if not turn.calls:
        assert turn.content == text


@pytest.mark.parametrize("guaranteed", [False, True])
def test_calls_between_texts(guaranteed: bool) -> None:
    second = call("a-b.c", '{"x": 1}')
    text = f"Let me see.\n\n{call('get', '{}')}\n{second} so"
    turn = scan([text], guaranteed=guaranteed)
    assert turn.content == "Let me see. so"
    assert turn.calls == (Call("0", "get", "{}"), Call("1", "a-b.c", '{"x": 1}'))


@pytest.mark.parametrize(
    "text",
    [
        "<tool_call>",
        "a <tool_call>\nnothing</tool_call> b",
        '<tool_call>{"name": "get"}</tool_call>',
        '<tool_call>{"name": "get", "arguments": [1]}</tool_call>',
        '<tool_call>{"name": "unknown", "arguments": {}}</tool_call>',
        '<tool_call>{"name": "get", "arguments": {}',
        '{"name": "get", "arguments": {}}',
        "</tool_call>",
        "<tool_cal",
    ],
)
def test_what_only_looks_like_a_call_is_text(text: str) -> None:
    assert scan([text]) == WholeTurn(text, "", ())


def test_guaranteed_arguments_are_passed_on_as_they_come() -> None:
    text = call("get_weather", '{"city": "Rome {\\"", "n": [1, 2]}')
    parts = parts_of(list(text), guaranteed=True)
    arguments = [part.text for part in parts if isinstance(part, CallArguments)]
    assert len(arguments) > 20
    assert json.loads("".join(arguments)) == {"city": 'Rome {"', "n": [1, 2]}
    assert not [part for part in parts if isinstance(part, Content)]


def test_arguments_that_were_cut_off_are_told_as_far_as_they_came() -> None:
    text = call("get", '{"city": "Rom').split("}")[0]
    assert scan([text], guaranteed=True).calls == (Call("0", "get", '{"city": "Rom'),)


def test_no_more_calls_than_may_be() -> None:
    text = call("get", "{}") + "\n" + call("get", "{}")
    turn = scan([text], most=1)
    assert len(turn.calls) == 1
    assert turn.content == "\n" + call("get", "{}")


SPOKEN: dict[str, tuple[str, str]] = {
    "json_tools": ("", call("get", '{"a": 1}')),
    "longcat": (
        "",
        '<longcat_tool_call>\n{"name": "get", "arguments": {"a": 1}}\n</longcat_tool_call>',
    ),
    "mistral": ("[ARGS]", '[TOOL_CALLS]get[ARGS]{"a": 1}[TOOL_CALLS]get_weather[ARGS]{"a": 2}'),
    "kimi_k2": (
        "",
        "<|tool_calls_section_begin|><|tool_call_begin|>functions.get:0<|tool_call_argument_begin|>"
        '{"a": 1}<|tool_call_end|><|tool_call_begin|>functions.a-b.c:1<|tool_call_argument_begin|>'
        '{"a": 2}<|tool_call_end|><|tool_calls_section_end|>',
    ),
    "kimi_k3": (
        "",
        '<|open|>tools<|sep|><|open|>call tool="get" index="0"<|sep|><|open|>json type="object"<|sep|>'
        '{"a": 1}<|close|>json<|sep|><|close|>call<|sep|><|close|>tools<|sep|>',
    ),
    "qwen3_coder": (
        "",
        "<tool_call>\n<function=get>\n<parameter=a>\n1\n</parameter>\n</function>\n</tool_call>",
    ),
    "glm47": (
        "",
        "<tool_call>get\n<arg_key>a</arg_key>\n<arg_value>1</arg_value>\n</tool_call>",
    ),
    "pythonic": ("", "<|tool_call_start|>[get(a=1)]<|tool_call_end|>"),
    "gemma4": ("", "<|tool_call>call:get{a:1}<tool_call|>"),
}


@pytest.mark.parametrize("name", SPOKEN)
@given(places=CUTS)
def test_families(name: str, places: list[int]) -> None:
    try:
        template, text = SPOKEN[name]
        syntax = family(name, template)
    except ImportError:
        pytest.skip("this mlx-lm does not have it")
    for guaranteed in (False, True):
        turn = scan(cut(f"Well\n{text}", places), syntax, guaranteed=guaranteed)
        assert turn.content == "Well"
        assert [each.name for each in turn.calls][:1] == ["get"]
        values = [json.loads(each.arguments) for each in turn.calls]
        if name != "qwen3_coder":  # whose parser wants a schema for anything but texts
            assert values == [{"a": 1}, {"a": 2}][: len(values)]
        assert turn.calls
    assert name in FORMS or name == "mistral"


def test_a_list_of_calls_in_the_older_syntax_of_mistral() -> None:
    text = (
        '[TOOL_CALLS][{"name": "get", "arguments": {"a": 1}}, {"name": "a-b.c", "arguments": {}}]'
    )
    for guaranteed in (False, True):
        turn = scan(list(text), family("mistral"), guaranteed=guaranteed)
        assert [(each.name, each.arguments) for each in turn.calls] == [
            ("get", '{"a": 1}'),
            ("a-b.c", "{}"),
        ]
        assert not turn.content
