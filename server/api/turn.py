"""One assistant turn: what the model is asked, what holds it, and how its text is read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from hashlib import blake2b

from pipeline.request import Constraint
from server.api import constraints
from server.api.constraints import AT_ONCE, Begin, Grammar
from server.api.errors import InvalidRequest
from server.api.harmony import MARKS, HarmonyReader, is_harmony
from server.api.reading import Reader, TurnReader
from server.api.reasoning import ThinkingMarks, ThinkingSplitter, is_closed, is_open, thinking_marks
from server.api.schemas import ChatBody
from server.api.service import ServedModel
from server.api.templates import chat_prompt
from server.api.tools.grammar import CallGrammar, Literals
from server.api.tools.scanner import CallScanner
from server.api.tools.schemas import Tool
from server.api.tools.use import ToolUse, tool_use

MISTRAL_ID_CHARS = 9  # its template refuses any other number


@dataclass(frozen=True)
class Turn:
    """What one chat request asks of the engine, the same for each of its choices."""

    prompt: tuple[int, ...]
    constraint: Constraint | None
    visible: frozenset[int]  # special tokens that the text has to show
    reader: Callable[[str], Reader]  # for the sequence with this id


def turn_of(body: ChatBody, model: ServedModel) -> Turn:
    """Raises InvalidRequest naming the field."""
    use = tool_use(body, model.tokenizer)
    marks = thinking_marks(model.tokenizer)
    prompt = chat_prompt(body, model, fitting=True)
    begun = marks is not None and is_open(prompt, marks)
    begin = _begin(prompt, marks)
    constraint = _constraint(body, model, use, begin)

    def reader(sequence: str) -> Reader:
        if is_harmony(model.tokenizer):
            return _harmony(use, sequence)
        splitter = None if marks is None else ThinkingSplitter(marks, begun=begun)
        return TurnReader(splitter, _scanner(use, sequence, constraint))

    return Turn(tuple(prompt), constraint, _visible(model, use, marks), reader)


def _begin(prompt: list[int], marks: ThinkingMarks | None) -> Begin:
    """Constraints hold the answer, not the thinking before it."""
    if marks is None or is_closed(prompt, marks):
        return AT_ONCE
    if is_open(prompt, marks):
        return Begin(after=(marks.end_tokens,))
    return Begin(after=(marks.end_tokens,), opening=marks.start_tokens[0])


def _scanner(
    use: ToolUse | None, sequence: str, constraint: Constraint | None
) -> CallScanner | None:
    if use is None:
        return None
    most = 1 if use.single else None
    held = constraint is not None
    ids = _call_ids(use, sequence)
    return CallScanner(use.syntax, use.tools, ids, guaranteed=held, most=most)


def _harmony(use: ToolUse | None, sequence: str) -> HarmonyReader:
    if use is None:
        return HarmonyReader()
    names = [tool.function.name for tool in use.tools]
    return HarmonyReader(names, _call_ids(use, sequence), 1 if use.single else None)


def _call_ids(use: ToolUse, sequence: str) -> Callable[[int], str]:
    def call_id(number: int) -> str:
        # From the sequence's own id, so that a response that is made again has the same ones.
        digest = blake2b(f"{sequence}/{number}".encode(), digest_size=12).hexdigest()
        return digest[:MISTRAL_ID_CHARS] if use.syntax.family == "mistral" else f"call_{digest}"

    return call_id


def _visible(
    model: ServedModel, use: ToolUse | None, marks: ThinkingMarks | None
) -> frozenset[int]:
    texts: list[str] = list(MARKS) if is_harmony(model.tokenizer) else []
    if use is not None:
        texts += [use.syntax.start, use.syntax.end, *use.syntax.inner]
    if marks is not None:
        texts += [marks.start, marks.end]
    added = model.tokenizer.get_added_vocab()
    return frozenset(token for text, token in added.items() if any(text in t for t in texts))


def _constraint(
    body: ChatBody, model: ServedModel, use: ToolUse | None, begin: Begin
) -> Constraint | None:
    if use is None:
        return constraints.of_format(body, model, body.response_format, begin)
    asked = constraints.asked_format(body, body.response_format)
    if use.syntax.form is None or not constraints.possible(model):
        _refuse_enforced(use, asked)
        return None
    literals = Literals(model.tokenizer.get_added_vocab())
    calls = _call_grammar(body, model, use, literals)
    if use.forced:
        if asked is not None and asked.param.split(".")[0] != "response_format":
            message = f"{asked.param} can't be combined with a tool_choice that forces a call."
            raise InvalidRequest(message, param=asked.param)
        return constraints.checked(Grammar("tool_choice", "lark", calls.forced), body, model, begin)
    if asked is not None:
        if asked.kind != "json_schema":
            message = f"{asked.param} can't be combined with tools."
            raise InvalidRequest(message, param=asked.param)
        grammar = Grammar(asked.param, "lark", calls.either(asked.text))
        return constraints.checked(grammar, body, model, begin)
    if body.ignore_eos:
        return None
    start = model.tokenizer.get_added_vocab().get(use.syntax.start)
    if start is not None:
        grammar = Grammar("tools", "lark", calls.begun)
        begin = replace(begin, after=(*begin.after, (start,)), optional=True)
        return constraints.checked(grammar, body, model, begin)
    return constraints.checked(Grammar("tools", "lark", calls.either()), body, model, begin)


def _refuse_enforced(use: ToolUse, asked: Grammar | None) -> None:
    """For a family whose calls can be read only: refuse what would have to be enforced."""
    family = use.syntax.family
    if use.forced:
        message = f"tool_choice: calls can't be forced in the syntax of this model ({family})."
        raise InvalidRequest(message, param="tool_choice", code="unsupported_parameter")
    for number, tool in enumerate(use.tools):
        if tool.function.strict:
            param = f"tools.{number}.function.strict"
            message = (
                f"{param}: calls can't be held to a schema in the syntax of this model ({family})."
            )
            raise InvalidRequest(message, param=param, code="unsupported_parameter")
    if asked is not None:
        message = (
            f"{asked.param} can't be combined with tools in the syntax of this model ({family})."
        )
        raise InvalidRequest(message, param=asked.param, code="unsupported_parameter")


def _call_grammar(
    body: ChatBody, model: ServedModel, use: ToolUse, literals: Literals
) -> CallGrammar:
    """Each function is tried alone, so that a refusal can name it.

    A schema that can't be enforced is an error of a strict function; the others get any object.
    """

    def grammar(tools: tuple[Tool, ...], lenient: frozenset[str]) -> CallGrammar:
        return CallGrammar(use.syntax, tools, literals, lenient, single=use.single)

    lenient = set()
    for tool in use.tools:
        name = tool.function.name
        place = [each.function.name for each in body.tools or ()].index(name)
        param = f"tools.{place}.function.parameters"
        try:
            text = grammar((tool,), frozenset()).forced
            constraints.checked(Grammar(param, "lark", text), body, model)
        except InvalidRequest as error:
            if tool.function.strict or error.param != param:
                raise
            lenient.add(name)
    return grammar(use.tools, frozenset(lenient))
