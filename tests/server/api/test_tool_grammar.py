"""What the grammar of a family allows, its parser reads as calls whose arguments fit their schema."""

from __future__ import annotations

import json
import random
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jsonschema
import pytest
from llguidance import LLMatcher
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from pipeline.request import Constraint
from pipeline.sampling.constraints import Matcher
from pipeline.sampling.grammar import Grammars, vocabulary_of
from server.api.reading import TurnReader, WholeTurn, whole_turn
from server.api.tools.families import FORMS, Syntax
from server.api.tools.grammar import CallGrammar, Literals
from server.api.tools.scanner import CallScanner
from server.api.tools.schemas import Tool
from tests.server.api.test_tool_scanner import GENERIC, family

END = "</s>"
FAMILIES = ["generic", "mistral", "mistral_list", *sorted(set(FORMS) - {"generic"})]

CLOSED: dict[str, Any] = {
    "type": "object",
    "properties": {
        "unit": {"type": "string", "enum": ["celsius", "kelvin"]},
        "days": {"type": "integer", "minimum": 1, "maximum": 12},
        "now": {"type": "boolean"},
    },
    "required": ["unit", "days"],
    "additionalProperties": False,
}
FREE: dict[str, Any] = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "n": {"$ref": "#/$defs/n"}},
    "required": ["city"],
    "additionalProperties": False,
    "$defs": {"n": {"type": "integer"}},
}


def tool(name: str, parameters: dict[str, Any] | None) -> Tool:
    function = {"name": name, "parameters": parameters}
    return Tool.model_validate({"type": "function", "function": function})


TOOLS = (tool("weather", CLOSED), tool("ping", None))


def syntax(name: str) -> Syntax:
    if name == "generic":
        return GENERIC
    try:
        return family(name.removesuffix("_list"), "[ARGS]" if name == "mistral" else "")
    except ImportError:
        pytest.skip("this mlx-lm does not have it")


def tokenizer_for(its: Syntax) -> PreTrainedTokenizerFast:
    """All bytes, and the marks of a family as tokens of their own, but those of the generic one."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={c: n for n, c in enumerate(letters)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    marks = [] if its.family == "generic" else [its.start, its.end, *its.inner]
    # Some families' marks are special tokens, some are not.
    plain = [m for m in dict.fromkeys(marks) if m and "\n" not in m and "=" not in m]
    backend.add_tokens([AddedToken(m, special=number % 2 == 0) for number, m in enumerate(plain)])
    backend.add_special_tokens([AddedToken(END, special=True)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=END)


class Speaker:
    """Says what a grammar allows, at random."""

    def __init__(self, its: Syntax, tools: tuple[Tool, ...] = TOOLS, single: bool = False) -> None:
        self.tokenizer = tokenizer_for(its)
        self.end = self.tokenizer.eos_token_id
        size = len(self.tokenizer)
        self.grammars = Grammars(lambda: vocabulary_of(self.tokenizer, size))
        literals = Literals(self.tokenizer.get_added_vocab())
        self.grammar = CallGrammar(its, tools, literals, frozenset(), single=single)

    def matcher(self, grammar: str) -> LLMatcher:
        constraint = Constraint(kind="lark", text=grammar, ends=(self.end,))
        return self.grammars.matcher(constraint)

    def say(self, grammar: str, seed: int) -> str:
        matcher, choose = self.matcher(grammar), random.Random(seed)
        tokens: list[int] = []
        while len(tokens) < 3000:
            mask = matcher.compute_logit_bias()
            allowed = [t for t in range(len(self.tokenizer)) if mask[t] and t != self.end]
            if matcher.is_accepting() and (not allowed or choose.random() < 0.5):
                return str(self.tokenizer.decode(tokens))
            tokens.append(choose.choice(allowed))
            assert matcher.consume_token(tokens[-1])
        raise AssertionError(f"no end in {self.tokenizer.decode(tokens)[:500]}")

    def accepts(self, grammar: str, text: str) -> bool:
        matcher = self.matcher(grammar)
        tokens = self.tokenizer.encode(text, add_special_tokens=False)
        return matcher.try_consume_tokens(tokens) == len(tokens) and matcher.is_accepting()


def read(text: str, its: Syntax, guaranteed: bool, tools: tuple[Tool, ...] = TOOLS) -> WholeTurn:
    reader = TurnReader(scanner=CallScanner(its, tools, str, guaranteed=guaranteed))
    return whole_turn([*reader.push(text), *reader.flush()])


def check(text: str, its: Syntax, tools: tuple[Tool, ...] = TOOLS) -> int:
    """All calls of a text are valid; how many there are."""
    schemas = {each.function.name: each.function.arguments for each in tools}
    for guaranteed in (True, False):
        turn = read(text, its, guaranteed, tools)
        assert turn.calls, text
        assert not turn.content, text
        for call in turn.calls:
            jsonschema.validate(json.loads(call.arguments), schemas[call.name])
    return len(turn.calls)


@pytest.mark.parametrize("name", FAMILIES)
def test_forced_calls_are_valid(name: str) -> None:
    its = syntax(name)
    speaker = Speaker(its)
    texts = [speaker.say(speaker.grammar.forced, seed) for seed in range(12)]
    counts = {check(text, its) for text in texts}
    assert len(counts) > 1, "several calls in one turn"
    assert len({read(text, its, True).calls[0].name for text in texts}) == 2


@pytest.mark.parametrize("name", FAMILIES)
def test_a_single_call_is_one(name: str) -> None:
    its = syntax(name)
    speaker = Speaker(its, single=True)
    assert {check(speaker.say(speaker.grammar.forced, seed), its) for seed in range(8)} == {1}


@pytest.mark.parametrize("name", FAMILIES)
def test_after_its_mark_a_call_is_held_to_the_same(name: str) -> None:
    its = syntax(name)
    speaker = Speaker(its)
    for seed in range(4):
        check(its.start + speaker.say(speaker.grammar.begun, seed), its)


WRITTEN = {
    "generic": '<tool_call>\n{"name": "f", "arguments": {"city": "Köln \\"x\\"", "n": 2}}\n</tool_call>',
    "json_tools": '<tool_call>\n{"name": "f", "arguments": {"city": "Köln", "n": 2}}\n</tool_call>',
    "qwen3_coder": "<tool_call>\n<function=f>\n<parameter=city>\nKöln <3\n</parameter>\n"
    "<parameter=n>\n2\n</parameter>\n</function>\n</tool_call>",
    "glm47": "<tool_call>f\n<arg_key>city</arg_key>\n<arg_value>Köln <3</arg_value>\n"
    "<arg_key>n</arg_key>\n<arg_value>2</arg_value>\n</tool_call>",
    "minimax_m2": '<minimax:tool_call>\n<invoke name="f">\n<parameter name="city">Köln <3</parameter>\n'
    '<parameter name="n">2</parameter>\n</invoke>\n</minimax:tool_call>',
    "gemma4": '<|tool_call>call:f{city:<|"|>Köln<|"|>,n:2}<tool_call|>',
    "pythonic": '<|tool_call_start|>[f(city="Köln <3", n=2)]<|tool_call_end|>',
    "mistral": '[TOOL_CALLS]f[ARGS]{"city": "Köln <3", "n": 2}',
}


@pytest.mark.parametrize("name", WRITTEN)
def test_calls_as_the_family_writes_them(name: str) -> None:
    its, tools = syntax(name), (tool("f", FREE),)
    speaker = Speaker(its, tools)
    text = WRITTEN[name]
    assert speaker.accepts(speaker.grammar.forced, text)
    assert speaker.accepts(speaker.grammar.begun, text.removeprefix(its.start))
    assert not speaker.accepts(speaker.grammar.forced, text.replace("2", "2.5"))
    assert not speaker.accepts(speaker.grammar.forced, "Hello")
    [call] = read(text, its, True, tools).calls
    values = json.loads(call.arguments)
    assert values["city"].startswith("Köln")


def test_a_text_or_calls_where_the_mark_is_no_token() -> None:
    tools = (tool("f", FREE),)
    speaker = Speaker(GENERIC, tools)
    either, call = speaker.grammar.either(), WRITTEN["generic"]
    for text in ("", "Hello <tool", f"Let me see.\n{call}", call, f"{call}\n{call}"):
        assert speaker.accepts(either, text), text
    for text in ("<tool_call>", f"{call} and", call.replace('"f"', '"g"'), "<tool_call>\n{}"):
        assert not speaker.accepts(either, text), text
    schema = json.dumps({"type": "integer"})
    both = speaker.grammar.either(schema)
    assert speaker.accepts(both, "12")
    assert speaker.accepts(both, call)
    assert not speaker.accepts(both, f"12{call}")
    assert not speaker.accepts(both, "Hello")


def test_names_that_are_the_beginning_of_others() -> None:
    tools = (tool("get", None), tool("get_more", None))
    for name in ("generic", "mistral", "kimi_k2", "qwen3_coder"):
        its = syntax(name)
        speaker = Speaker(its, tools, single=True)
        texts = [speaker.say(speaker.grammar.forced, seed) for seed in range(8)]
        assert {read(text, its, True, tools).calls[0].name for text in texts} == {"get", "get_more"}


def test_a_constraint_sees_tokens_that_are_marks() -> None:
    """The mask of the engine, and not only of the library."""

    its = syntax("json_tools")
    speaker = Speaker(its)
    constraint = Constraint(kind="lark", text=speaker.grammar.forced, ends=(speaker.end,))
    with ThreadPoolExecutor(1) as pool:
        allowed = Matcher(constraint, (), len(speaker.tokenizer), speaker.grammars, pool).allowed()
    mark = speaker.tokenizer.convert_tokens_to_ids(its.start)
    assert allowed.tokens[mark]
    assert not allowed.tokens[speaker.end]
