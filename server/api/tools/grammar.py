"""The grammar of tool calls, in the syntax of the model's family, with the schemas of the functions inside."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from server.api.constraints import schema_text
from server.api.tools.families import JsonCall, Syntax, TaggedCall
from server.api.tools.schemas import Tool

MOST_CALLS = 15  # after the first one of a turn; small models go on for ever
DEFINITIONS = ("$defs", "definitions")  # what references of a schema point to


class Literals:
    """Texts as terms of a grammar: what is a token of its own by its number, the rest as it is spelled."""

    def __init__(self, added: Mapping[str, int]) -> None:
        """`added`: the tokens that a tokenizer does not spell."""
        self._added = added
        by_length = sorted((re.escape(text) for text in added if text), key=len, reverse=True)
        self._split = re.compile(f"({'|'.join(by_length)})" if by_length else r"(?!)")

    def __call__(self, text: str) -> str:
        terms = [part for part in self._split.split(text) if part]
        return " ".join(
            f"<[{self._added[part]}]>" if part in self._added else quoted(part) for part in terms
        )

    def begins_with_token(self, text: str) -> bool:
        """Whether `text` begins with such a token."""
        found = self._split.match(text)
        return found is not None and bool(found[0])


def quoted(text: str) -> str:
    """A text as a literal of a Lark grammar, which has JSON's escapes."""
    return json.dumps(text, ensure_ascii=False)


def json_rule(schema: dict[str, Any], *, lenient: bool) -> str:
    """A JSON schema as a term; see schema_text."""
    return "%json " + schema_text(schema, lenient=lenient)


class CallGrammar:
    """Rules for calls of some functions.  `lenient`: those whose schema can't be enforced whole."""

    def __init__(
        self,
        syntax: Syntax,
        tools: Sequence[Tool],
        literals: Literals,
        lenient: frozenset[str],
        *,
        single: bool,
    ) -> None:
        assert syntax.form is not None
        self._syntax, self._form, self._single = syntax, syntax.form, single
        self._literal, self._lenient = literals, lenient
        self._rules: list[str] = []
        bodies = [self._body(number, tool) for number, tool in enumerate(tools)]
        self._rules.append("call: " + " | ".join(bodies))

    @property
    def forced(self) -> str:
        """Nothing but calls."""
        return self._grammar("start: space? begin calls")

    @property
    def begun(self) -> str:
        """The rest of a text after the mark with which a call begins."""
        return self._grammar("start: calls")

    def either(self, schema: str | None = None) -> str:
        """Calls, or an answer: JSON by `schema`, or any text; calls may follow a text too."""
        if schema is not None:
            return self._grammar("start: space? begin calls | answer", f"answer: %json {schema}")
        mark = quoted(self._syntax.start)
        pattern = re.escape(self._syntax.start).replace("/", r"\/")
        return self._grammar(
            "start: FREE | preface calls",
            f"FREE: ~/(?s:.*){pattern}(?s:.*)/",
            f"preface[suffix={mark}]: /(?s:.*)/",
        )

    def _grammar(self, *rules: str) -> str:
        return "\n".join([*rules, *self._frame(), *self._rules]) + "\n"

    def _frame(self) -> list[str]:
        """`begin`, and `calls`: all that follows it."""
        form, literal = self._form, self._literal
        end = literal(self._syntax.end)
        rules = [f"begin: {literal(self._syntax.start)}", r"space: /[ \n]{1,4}/"]
        if isinstance(form, JsonCall) and form.between is not None:
            more = "" if self._single else f" ({literal(form.between)} call){{0,{MOST_CALLS}}}"
            return [*rules, f"calls: {literal(form.first)} call{more} {literal(form.last)} {end}"]
        more = "" if self._single else f" (space? begin call {end}){{0,{MOST_CALLS}}}"
        return [*rules, f"calls: call {end}{more}"]

    def _body(self, number: int, tool: Tool) -> str:
        form, function, lenient = self._form, tool.function, tool.function.name in self._lenient
        if isinstance(form, JsonCall):
            schema = {"type": "object"} if lenient else function.arguments
            rule = f"arguments{number}: {json_rule(as_object(schema), lenient=not function.strict)}"
            self._rules.append(rule)
            before = self._numbered(form.before.replace("{name}", function.name))
            return f"{before} arguments{number} {self._literal(form.after)}"
        arguments = self._tagged(number, form, function.arguments, lenient)
        before = self._literal(form.before.replace("{name}", function.name))
        return f"{before} {arguments} {self._literal(form.after)}"

    def _numbered(self, text: str) -> str:
        parts = [self._literal(part) for part in text.split("{n}")]
        return r" /[0-9]{1,3}/ ".join(parts)

    def _tagged(self, number: int, form: TaggedCall, schema: dict[str, Any], lenient: bool) -> str:
        """All arguments in the order of the schema; those that are not required may be left out."""
        required, properties = schema.get("required"), schema.get("properties")
        required = required if isinstance(required, list) else []
        properties = properties if isinstance(properties, dict) else {}
        shared = {key: schema[key] for key in DEFINITIONS if key in schema}
        terms: list[str] = []
        for place, (key, value) in enumerate(properties.items()):
            name = f"argument{number}_{place}"
            before = form.argument.replace("{key}", key)
            alone = {**shared, **value} if isinstance(value, dict) else {}
            self._rules.append(f"{name}: {self._value(name, before, form, alone, lenient)}")
            terms.append(name if key in required else f"{name}?")
        if not form.between:
            return " ".join(terms)
        return self._separated(number, terms, self._literal(form.between))

    def _separated(self, number: int, terms: list[str], between: str) -> str:
        """Terms, some of them optional, with separators between those that are there."""
        options: list[str] = []
        for first, term in enumerate(terms):
            rest = [
                f"({between} {t.rstrip('?')})" + ("?" if t.endswith("?") else "")
                for t in terms[first + 1 :]
            ]
            options.append(" ".join([term.rstrip("?"), *rest]))
            if not term.endswith("?"):
                break
        else:
            options.append('""')
        self._rules.append(f"arguments{number}: " + " | ".join(options))
        return f"arguments{number}"

    def _value(
        self, name: str, before: str, form: TaggedCall, schema: dict[str, Any], lenient: bool
    ) -> str:
        literal = self._literal
        if schema.get("type") != "string" or form.quoted:
            value = json_rule({} if lenient else schema, lenient=True)
            return f"{literal(before)} {value} {literal(form.argument_end)}"
        head, tail = form.text
        choices = schema.get("enum")
        if isinstance(choices, list) and choices:
            options = " | ".join(quoted(str(each)) for each in choices)
            return f"{literal(before + head)} ({options}) {literal(tail + form.argument_end)}"
        return f"{literal(before + head)} {self._text(name, tail + form.argument_end)}"

    def _text(self, name: str, end: str) -> str:
        """Any text up to `end`, which begins with a token of its own or is spelled."""
        if self._literal.begins_with_token(end):
            return f"/(?s:.*)/ {self._literal(end)}"
        self._rules.append(f"{name}_text[suffix={quoted(end)}]: /(?s:.*)/")
        return f"{name}_text"


def as_object(schema: dict[str, Any]) -> dict[str, Any]:
    """Arguments are an object, even where a schema forgets to say so."""
    return schema if "type" in schema or "$ref" in schema else {"type": "object", **schema}
