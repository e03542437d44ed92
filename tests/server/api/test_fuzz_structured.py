"""Whatever schemas, tools and formats say: an answer, or an error that names a field; never a fault."""

from __future__ import annotations

import importlib
from functools import cache
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mlx_lm.tokenizer_utils import TokenizerWrapper

from tests.server.api.conftest import Client
from tests.server.api.fakes import TOKENIZER, FakeEngine, Script, ids, make_service, make_tokenizer
from tests.server.api.test_tools import TEMPLATE

KEYWORDS = st.sampled_from(
    [
        "type", "properties", "required", "items", "enum", "const", "anyOf", "allOf", "oneOf", "not",
        "pattern", "format", "minLength", "maxLength", "minimum", "maximum", "minItems", "maxItems",
        "additionalProperties", "patternProperties", "prefixItems", "$ref", "$defs", "description",
        "x-guidance", "uniqueItems",
    ]
)  # fmt: skip
TYPES = st.sampled_from(
    ["object", "array", "string", "integer", "number", "boolean", "null", "odd"]
)
TEXT = st.text(st.characters(codec="utf-8"), max_size=6)
SCALARS = (
    TYPES | st.none() | st.booleans() | st.integers(-3, 1 << 70) | TEXT
    | st.floats(allow_nan=False, allow_infinity=False) | st.sampled_from(["#", "#/$defs/a", "^a+$", "("])
)  # fmt: skip
SCHEMAS = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(KEYWORDS, inner, max_size=4)
        | st.dictionaries(st.sampled_from(["a", "b c", '"', "<x>", "é"]), inner, max_size=3)
    ),
    max_leaves=10,
)
NAMES = st.sampled_from(["f", "get_weather", "a.b", "", "x" * 70, "no good"]) | TEXT
FUNCTIONS = st.fixed_dictionaries(
    {"name": NAMES},
    optional={"parameters": SCHEMAS, "strict": st.booleans() | SCALARS, "description": TEXT},
)
TOOLS = st.lists(
    st.fixed_dictionaries({"type": st.just("function"), "function": FUNCTIONS}), max_size=3
)
CHOICES = st.sampled_from(["none", "auto", "required"]) | st.builds(
    lambda name: {"type": "function", "function": {"name": name}}, NAMES
)
FIELDS = st.fixed_dictionaries(
    {},
    optional={
        "tools": TOOLS,
        "tool_choice": CHOICES,
        "parallel_tool_calls": st.booleans(),
        "response_format": st.builds(
            lambda schema, strict: {
                "type": "json_schema",
                "json_schema": {"name": "n", "schema": schema, "strict": strict},
            },
            SCHEMAS,
            st.booleans(),
        ),
        "reasoning_effort": st.sampled_from(["none", "low", "high", "much"]),
    },
)
GUIDED = st.fixed_dictionaries(
    {},
    optional={
        "guided_json": SCHEMAS,
        "guided_regex": st.text("a(b)[]{2,}*+?|\\.^$", max_size=8),
        "guided_choice": st.lists(TEXT, max_size=3),
        "guided_grammar": st.text('start: "a" b\n/|*()%json{}', max_size=30),
    },
)
few = settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)


def wrapper(name: str) -> TokenizerWrapper:
    if name == "generic":
        return TOKENIZER
    parser = importlib.import_module(f"mlx_lm.tool_parsers.{name}")
    return TokenizerWrapper(
        make_tokenizer(TEMPLATE)._tokenizer,
        tool_call_start=parser.tool_call_start,
        tool_call_end=parser.tool_call_end,
        tool_parser=parser.parse_tool_call,
    )


@cache
def client(name: str) -> Client:
    engine = FakeEngine(Script(ids("hello")))
    return Client(make_service(engine, tokenizer=wrapper(name), max_model_len=20_000))


def check(response: Any) -> None:
    if response.status_code != 200:
        assert response.status_code == 400, response.text
        error = response.json()["error"]
        assert error["type"] == "invalid_request_error"
        assert error["param"]
        assert len(error["message"]) < 1000


@pytest.mark.parametrize("name", ["generic", "json_tools", "qwen3_coder", "gemma4", "pythonic"])
@few
@given(fields=FIELDS)
def test_chat(name: str, fields: dict[str, Any]) -> None:
    check(client(name).chat(**fields))


@few
@given(GUIDED)
def test_completions(fields: dict[str, Any]) -> None:
    check(client("generic").complete(**fields))
