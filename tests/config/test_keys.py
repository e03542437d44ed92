from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from config.keys import closest, format_key, parse_key

PARTS = st.text(min_size=1).filter(lambda part: '"' not in part)


@given(st.lists(PARTS, min_size=1))
def test_a_key_survives_formatting_and_parsing(parts):
    assert parse_key(format_key(parts)) == tuple(parts)


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("default_model", ("default_model",)),
        ("api_gateway.port", ("api_gateway", "port")),
        ('models."qwen2.5-7b".source', ("models", "qwen2.5-7b", "source")),
        ('"a b"', ("a b",)),
    ],
)
def test_parse(text, path):
    assert parse_key(text) == path
    assert format_key(path) == text


@pytest.mark.parametrize(
    "text", ["", ".", "a.", ".a", "a..b", "a b", 'a."b', 'a."".b', '"a"b', "a=b"]
)
def test_parse_refuses(text):
    with pytest.raises(ValueError, match="not a dotted key"):
        parse_key(text)


def test_an_index_is_shown_in_brackets():
    assert format_key(("cluster", "ranks", 1)) == "cluster.ranks[1]"


def test_closest_suggests_only_what_is_near():
    assert closest("prot", ["port", "host"]) == "port"
    assert closest("zebra", ["port", "host"]) is None
