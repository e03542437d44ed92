"""From what a request says about its output to the constraint that a stage obeys.

A grammar is compiled here before the request is admitted: what is broken or too large is the client's to know,
with the name of the field, and never reaches a stage.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from pydantic_core import PydanticCustomError, from_json

from pipeline.errors import ConstraintRefused
from pipeline.request import MAX_GRAMMAR_CHARS, Constraint
from server.api.errors import InvalidRequest
from server.api.output_format import JsonObjectFormat, JsonSchemaFormat, ResponseFormat
from server.api.schemas import GenerationBody
from server.api.service import ServedModel
from server.api.tools.schemas import bounded_schema

# A model that has begun to indent may go on for ever where any amount of white space is allowed.
WHITE_SPACE = r"(\n[ \t]{0,40}| {0,2})"

EMBEDDED = re.compile(r"%json\s*")
ANY_OBJECT = {"type": "object"}
OPTIONS = "x-guidance"  # where llguidance looks for options in a schema; not the client's to set


@dataclass(frozen=True)
class Grammar:
    """What the output has to match.  `param`: the field that says so."""

    param: str
    kind: Literal["json_schema", "regex", "lark"]
    text: str


@dataclass(frozen=True)
class Begin:
    """Where a constraint begins; the fields are those of pipeline.request.Constraint."""

    after: tuple[tuple[int, ...], ...] = ()
    opening: int | None = None
    optional: bool = False


AT_ONCE = Begin()


def of_format(
    body: GenerationBody,
    model: ServedModel,
    response_format: ResponseFormat | None = None,
    begin: Begin = AT_ONCE,
) -> Constraint | None:
    """The constraint that a body's response_format or guided fields ask for.

    Raises InvalidRequest naming the field.
    """
    asked = asked_format(body, response_format)
    return None if asked is None else checked(asked, body, model, begin)


def asked_format(body: GenerationBody, response_format: ResponseFormat | None) -> Grammar | None:
    """The one grammar that a body asks for.  Raises InvalidRequest if there are two."""
    asked = [*_formats(response_format), *_guided(body), *_structured_outputs(body)]
    if len(asked) > 1:
        message = f"{asked[1].param} can't be combined with {asked[0].param}."
        raise InvalidRequest(message, param=asked[1].param)
    return asked[0] if asked else None


def checked(
    grammar: Grammar, body: GenerationBody, model: ServedModel, begin: Begin = AT_ONCE
) -> Constraint:
    """The constraint, after compiling it.  Raises InvalidRequest naming the field of `grammar`."""
    if body.ignore_eos:
        message = f"ignore_eos can't be combined with {grammar.param}, which says where to end."
        raise InvalidRequest(message, param="ignore_eos")
    if not model.end_tokens:
        message = f"{grammar.param}: the model has no token that ends a text."
        raise InvalidRequest(message, param=grammar.param)
    if len(grammar.text) > MAX_GRAMMAR_CHARS:
        message = f"{grammar.param} exceeds {MAX_GRAMMAR_CHARS} characters."
        raise InvalidRequest(message, param=grammar.param)
    constraint = Constraint(
        kind=grammar.kind,
        text=grammar.text,
        ends=model.end_tokens,
        after=begin.after,
        opening=begin.opening,
        optional=begin.optional,
    )
    try:
        model.grammars.matcher(constraint)
    except ConstraintRefused as error:
        raise InvalidRequest(f"{grammar.param}: {error}.", param=grammar.param) from error
    return constraint


def possible(model: ServedModel) -> bool:
    """Whether the model's tokenizer is one that grammars can work with."""
    try:
        return model.grammars.vocabulary.vocab_size > 0
    except ConstraintRefused:
        return False


def schema_text(schema: dict[str, Any], *, lenient: bool) -> str:
    """A JSON schema for the engine.  `lenient`: keywords that can't be enforced are left out, not refused."""
    options = {"lenient": lenient, "whitespace_pattern": WHITE_SPACE}
    return json.dumps({**schema, OPTIONS: options}, ensure_ascii=False)


def _formats(asked: ResponseFormat | None) -> Iterator[Grammar]:
    if isinstance(asked, JsonObjectFormat):
        yield Grammar("response_format", "json_schema", schema_text(ANY_OBJECT, lenient=False))
    if isinstance(asked, JsonSchemaFormat):
        named = asked.json_schema
        schema = ANY_OBJECT if named.json_schema is None else named.json_schema
        # Without strict, OpenAI follows a schema as far as it can.
        text = schema_text(schema, lenient=not named.strict)
        yield Grammar("response_format.json_schema.schema", "json_schema", text)


def _guided(body: GenerationBody) -> Iterator[Grammar]:
    if body.guided_json is not None:
        yield _json("guided_json", body.guided_json)
    if body.guided_regex is not None:
        yield Grammar("guided_regex", "regex", body.guided_regex)
    if body.guided_choice is not None:
        yield _choice("guided_choice", body.guided_choice)
    if body.guided_grammar is not None:
        yield _lark("guided_grammar", body.guided_grammar)


def _structured_outputs(body: GenerationBody) -> Iterator[Grammar]:
    asked, prefix = body.structured_outputs, "structured_outputs"
    if asked is None:
        return
    if asked.json_ is not None:
        yield _json(f"{prefix}.json", asked.json_)
    if asked.regex is not None:
        yield Grammar(f"{prefix}.regex", "regex", asked.regex)
    if asked.choice is not None:
        yield _choice(f"{prefix}.choice", asked.choice)
    if asked.grammar is not None:
        yield _lark(f"{prefix}.grammar", asked.grammar)
    if asked.json_object:
        text = schema_text(ANY_OBJECT, lenient=False)
        yield Grammar(f"{prefix}.json_object", "json_schema", text)


def _json(param: str, value: dict[str, Any] | str) -> Grammar:
    schema: Any = value
    if isinstance(value, str):
        try:
            schema = from_json(value, allow_inf_nan=False)  # has a limit of its own on depth
        except ValueError as error:
            raise InvalidRequest(f"{param} is no valid JSON: {error}.", param=param) from error
    if not isinstance(schema, dict):
        raise InvalidRequest(f"{param} must be a JSON schema, an object.", param=param)
    _check_schema(param, schema)
    return Grammar(param, "json_schema", schema_text(schema, lenient=False))


def _lark(param: str, text: str) -> Grammar:
    """A Lark grammar; schemas inside it have the same bounds as others."""
    for found in EMBEDDED.finditer(text):
        try:
            schema, _ = json.JSONDecoder().raw_decode(text, found.end())
        except (ValueError, RecursionError) as error:
            raise InvalidRequest(f"{param}: no JSON follows %json.", param=param) from error
        _check_schema(param, schema)
    return Grammar(param, "lark", text)


def _check_schema(param: str, schema: Any) -> None:
    try:
        bounded_schema(schema)
    except PydanticCustomError as error:
        raise InvalidRequest(f"{param}: {error.message()}.", param=param) from error


def _choice(param: str, choices: list[str]) -> Grammar:
    return Grammar(param, "lark", "start: " + " | ".join(map(lark_text, choices)))


def lark_text(text: str) -> str:
    """A text as a literal of a Lark grammar, which has JSON's escapes."""
    return json.dumps(text, ensure_ascii=False)
