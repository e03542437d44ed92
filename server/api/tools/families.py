"""How each model family writes tool calls: its marks, mlx-lm's parser for it, and the grammar of one call.

What stands between two marks is one call, or several for some families.  A family whose arguments are JSON has
a `header`, after which they follow; the others have their values written one by one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from server.api.harmony import MARKS, TURN_ENDS, is_harmony

Parse = Callable[[str, list[dict[str, Any]]], Any]

# What mlx-lm's parsers raise on a text that is no call; they are written for texts that are.
PARSE_FAILURES = (ValueError, TypeError, LookupError, AttributeError, SyntaxError, RecursionError)

GENERIC, HARMONY = "generic", "harmony"


@dataclass(frozen=True)
class JsonCall:
    """A call whose arguments are one JSON object.  {name} stands for the function, {n} for its number."""

    before: str
    after: str
    header: str  # a regular expression, with {name}
    first: str = ""  # before the first call between two marks
    between: str | None = None  # two calls between two marks; None: each has marks of its own
    last: str = ""  # after the last one


@dataclass(frozen=True)
class TaggedCall:
    """A call whose arguments stand one by one.  {key} stands for the argument's name."""

    before: str
    argument: str
    argument_end: str
    after: str
    text: tuple[str, str] = ("", "")  # around a text, which is written as it is
    between: str = ""  # two arguments
    quoted: bool = False  # a text is a JSON string


@dataclass(frozen=True)
class Syntax:
    """Tool calls of one family.  `end` is empty where nothing marks it."""

    family: str
    start: str
    end: str
    parse: Parse
    form: JsonCall | TaggedCall | None  # None: calls can be read, but not be enforced
    inner: tuple[str, ...] = ()  # special tokens inside a call

    @property
    def header(self) -> str | None:
        """What stands before the arguments of a call, as a regular expression; None if they are no JSON."""
        return self.form.header if isinstance(self.form, JsonCall) else None

    def header_of(self, names: Sequence[str]) -> re.Pattern[str]:
        """The header of a call of one of these functions; group `name` says which."""
        assert self.header is not None
        options = "|".join(map(re.escape, names))
        return re.compile(self.header.replace("NAME", f"(?P<name>{options})") + r"(?=\{)")

    def calls(self, body: str, tools: list[dict[str, Any]]) -> list[Any]:
        """The calls in `body`, as the family's parser reads them; empty if it can't."""
        try:
            found = self.parse(body, tools)
        except PARSE_FAILURES:
            return []
        return found if isinstance(found, list) else [found]


_JSON_HEADER = r'\s*\{\s*"name"\s*:\s*"NAME"\s*,\s*"arguments"\s*:\s*'
_JSON = JsonCall('{"name": "{name}", "arguments": ', "}", _JSON_HEADER)
_JSON_LINE = JsonCall('\n{"name": "{name}", "arguments": ', "}\n", _JSON_HEADER)
_JSON_LIST = JsonCall(
    '{"name": "{name}", "arguments": ',
    "}",
    r"[\s\[,]*" + _JSON_HEADER,
    first="[",
    between=", ",
    last="]",
)
_ARGS = JsonCall("{name}[ARGS]", "", r"\s*(?:\[TOOL_CALLS\])?\s*NAME\s*\[ARGS\]\s*")
_KIMI_K2 = JsonCall(
    "<|tool_call_begin|>functions.{name}:{n}<|tool_call_argument_begin|>",
    "<|tool_call_end|>",
    r"\s*<\|tool_call_begin\|>\s*functions\.NAME:\d+\s*<\|tool_call_argument_begin\|>\s*",
    between="",
)
_KIMI_K3 = JsonCall(
    '<|open|>call tool="{name}" index="{n}"<|sep|><|open|>json type="object"<|sep|>',
    "<|close|>json<|sep|><|close|>call<|sep|>",
    r'\s*<\|open\|>call tool="NAME" index="\d+"<\|sep\|>\s*<\|open\|>json type="object"<\|sep\|>\s*',
    between="",
)

FORMS: dict[str, JsonCall | TaggedCall] = {
    GENERIC: _JSON_LINE,
    "json_tools": _JSON_LINE,
    "longcat": _JSON_LINE,
    "kimi_k2": _KIMI_K2,
    "kimi_k3": _KIMI_K3,
    "qwen3_coder": TaggedCall(
        "\n<function={name}>\n", "<parameter={key}>\n", "\n</parameter>\n", "</function>\n"
    ),
    "glm47": TaggedCall("{name}\n", "<arg_key>{key}</arg_key>\n<arg_value>", "</arg_value>\n", ""),
    "laguna": TaggedCall("{name}\n", "<arg_key>{key}</arg_key>\n<arg_value>", "</arg_value>\n", ""),
    "minimax_m2": TaggedCall(
        '\n<invoke name="{name}">\n', '<parameter name="{key}">', "</parameter>\n", "</invoke>\n"
    ),
    "minicpm5": TaggedCall('"{name}">', '<param name="{key}">', "</param>", ""),
    "muse_spark": TaggedCall(
        '\n<atem:invoke name="{name}">\n',
        '<atem:parameter name="{key}">',
        "</atem:parameter>\n",
        "</atem:invoke>\n",
    ),
    "gemma4": TaggedCall("call:{name}{", "{key}:", "", "}", text=('<|"|>', '<|"|>'), between=","),
    "function_gemma": TaggedCall(
        "call:{name}{", "{key}:", "", "}", text=("<escape>", "<escape>"), between=","
    ),
    "pythonic": TaggedCall("[{name}(", "{key}=", "", ")]", between=", ", quoted=True),
}
"""By the name of mlx-lm's parser."""

_INNER = {
    "mistral": ("[ARGS]",),
    "kimi_k2": ("<|tool_call_begin|>", "<|tool_call_argument_begin|>", "<|tool_call_end|>"),
    "kimi_k3": ("<|open|>", "<|close|>", "<|sep|>"),
    "gemma4": ('<|"|>',),
    "function_gemma": ("<escape>",),
    "glm47": ("<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>"),
    "laguna": ("<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>"),
    "longcat": (
        "<longcat_arg_key>",
        "</longcat_arg_key>",
        "<longcat_arg_value>",
        "</longcat_arg_value>",
    ),
}


def syntax_of(tokenizer: Any) -> Syntax:
    """The syntax of the model behind mlx-lm's tokenizer; one of our own for a model that has none."""
    if is_harmony(tokenizer):  # read by a reader of its own
        return Syntax(HARMONY, TURN_ENDS[0], "", lambda body, _: json.loads(body), None, MARKS)
    if not has_tools(tokenizer):
        return Syntax(
            GENERIC, "<tool_call>", "</tool_call>", lambda body, _: json.loads(body), _JSON_LINE
        )
    family = tokenizer.tool_parser.__module__.rsplit(".", 1)[-1]
    form = FORMS.get(family)
    if family == "mistral":
        form = _ARGS if "[ARGS]" in str(tokenizer.chat_template) else _JSON_LIST
    return Syntax(
        family,
        tokenizer.tool_call_start,
        tokenizer.tool_call_end or "",
        tokenizer.tool_parser,
        form,
        _INNER.get(family, ()),
    )


def has_tools(tokenizer: Any) -> bool:
    """Whether the model's template writes tools, in a syntax that can be read."""
    if is_harmony(tokenizer):
        return True
    return bool(getattr(tokenizer, "has_tool_calling", False)) and tokenizer.tool_parser is not None
