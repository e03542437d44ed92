from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from config.errors import ConfigError
from config.layers import Origin
from config.yaml_text import read_leaves, read_value, write_value

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(min_size=1), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(PLAIN)
def test_a_value_survives_writing_and_reading(value):
    text = write_value(value)
    assert "\n" not in text
    assert read_value(text, "test") == value


@given(st.text() | st.text(alphabet="ab:{}[]&*!|>-\"'#,? \n\t1"))
def test_any_text_is_read_or_refused_in_one_sentence(text):
    with contextlib.suppress(ConfigError):
        list(read_leaves(text, "x.yaml"))
    with contextlib.suppress(ConfigError):
        read_value(text, "--set a")


def test_leaves_know_their_lines():
    text = "a:\n  b: 1\n\n  # comment\n  c: [1,\n      2]\nd: {}\n"
    found = {leaf.path: (leaf.value, leaf.origin) for leaf in read_leaves(text, "x.yaml")}
    assert found == {
        ("a", "b"): (1, Origin("x.yaml", 2)),
        ("a", "c"): ([1, 2], Origin("x.yaml", 5)),
        ("d",): ({}, Origin("x.yaml", 7)),
    }


@pytest.mark.parametrize("text", ["", "# nothing\n", "null\n", "{}\n", "a:\n", "a:\n  # b: 1\n"])
def test_a_file_of_comments_says_nothing(text):
    assert list(read_leaves(text, "x.yaml")) == []


def test_a_null_inside_a_section_is_a_value():
    assert [leaf.value for leaf in read_leaves("a: {b: null}", "x.yaml")] == [None]


@pytest.mark.parametrize(
    ("text", "value"),
    [("1e9", 1e9), ("1.5E-3", 0.0015), ("-2e+1", -20.0), (".5e1", 5.0), ("1_0.e2", 1000.0)],
)
def test_numbers_with_an_exponent(text, value):
    assert read_value(text, "test") == value
    assert write_value(text) == f"'{text}'"


@pytest.mark.parametrize("text", ["e9", "1e", "1e9GB", "0x1e9z", "1e9-abc"])
def test_text_that_only_begins_like_one(text):
    assert read_value(text, "test") == text


def test_dates_stay_text():
    assert read_value("2024-01-31", "test") == "2024-01-31"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3\n", "x.yaml line 3: a is given twice, first on line 1."),
        ("a:\n  b: 1\n  b: 1\n", "x.yaml line 3: a.b is given twice, first on line 2."),
        ("a: [{b: 1, b: 2}]\n", "x.yaml line 1: a.b is given twice, first on line 1."),
        ("a: 1\n8000: 2\n", "x.yaml line 2: the key 8000 is not text; put it in quotes."),
        ("a: 1\nno: 2\n", "x.yaml line 2: the key no is not text; put it in quotes."),
        ("[a]: 1\n", "x.yaml line 1: the key a collection is not text; put it in quotes."),
        ("- a\n- b\n", "x.yaml line 1: should be a mapping of keys to values."),
        ("a: &x 1\nb: *x\n", "x.yaml line 2: not valid YAML: aliases are not allowed."),
        ("a: !!python/name:os.system\n", "is not allowed."),
        ("a: 1\nb: !!python/object/apply:os.system ['true']\n", "x.yaml line 2: not valid YAML: "),
        ("a: 1\nb: !!int many\n", "x.yaml line 2: many is not tag:yaml.org,2002:int."),
        ("a: 1\nb: !!bool many\n", "x.yaml line 2: many is not tag:yaml.org,2002:bool."),
        ("a: 1\n\tb: 2\n", "x.yaml line 2: not valid YAML: "),
        ("a: 1\n---\nb: 2\n", "x.yaml line 2: not valid YAML: "),
        ("a: \x00", "x.yaml: not valid YAML: special characters are not allowed."),
    ],
)
def test_refused(text, message):
    with pytest.raises(ConfigError) as raised:
        list(read_leaves(text, "x.yaml"))
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("text", ["", "  ", "# 5"])
def test_an_empty_value_is_refused(text):
    with pytest.raises(ConfigError, match=r"^env X: the value is empty"):
        read_value(text, "env X")
