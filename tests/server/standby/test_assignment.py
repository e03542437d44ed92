"""The line that tells waiting ranks what they are."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.standby.assignment import (
    VERSION,
    Assignment,
    AssignmentError,
    Word,
    heard,
    read_assignment,
    said,
)

VALID: dict[str, Any] = {
    "version": VERSION,
    "epoch": 3,
    "places": [2, 0],
    "ring": [["10.0.0.3:32323"], ["10.0.0.1:32324"]],
    "arguments": ["--set", "cluster.ranks=[c, a]"],
}

texts = st.text(st.characters(codec="utf-8"), min_size=1)


@st.composite
def assignments(draw: st.DrawFn) -> Assignment:
    places = draw(st.lists(st.integers(0, 99), min_size=1, max_size=8, unique=True))
    addresses = st.lists(texts, min_size=1, max_size=2).map(tuple)
    size = len(places)
    return Assignment(
        version=VERSION,
        epoch=draw(st.integers(0, 2**40)),
        places=tuple(places),
        ring=tuple(draw(st.lists(addresses, min_size=size, max_size=size))),
        arguments=tuple(draw(st.lists(st.text(st.characters(codec="utf-8"))))),
    )


@given(assignments())
def test_it_is_one_line_and_is_read_as_it_was_meant(made: Assignment) -> None:
    line = made.line()
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    assert read_assignment(line) == made


@given(assignments())
def test_everybody_named_gets_a_rank_of_its_own_and_nobody_else_does(made: Assignment) -> None:
    ranks = [made.rank_at(place) for place in range(100)]
    given_out = [rank for rank in ranks if rank is not None]
    assert sorted(given_out) == list(range(len(made.places)))


@given(assignments())
def test_the_hostfile_has_the_addresses_in_rank_order(made: Assignment) -> None:
    if len(made.places) == 1:
        assert made.hostfile == ""  # of a world of one, as mlx.launch writes it
    else:
        assert json.loads(made.hostfile) == [list(addresses) for addresses in made.ring]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"version": 2}, "version is 2"),
        ({"version": None}, "$.version"),
        ({"epoch": -1}, "$.epoch"),
        ({"places": [0, 0]}, "places names one twice"),
        ({"places": []}, "$.places"),
        ({"places": [0, "1"]}, "$.places[1]"),
        ({"ring": [["a:1"]]}, "ring is for 1 ranks"),
        ({"ring": [["a:1"], []]}, "$.ring[1]"),
        ({"arguments": "--set"}, "$.arguments"),
        ({"more": 1}, "more"),
    ],
)
def test_anything_else_is_refused_by_name(change: dict[str, Any], named: str) -> None:
    with pytest.raises(AssignmentError) as refused:
        read_assignment(json.dumps({**VALID, **change}).encode())
    assert named in str(refused.value)


@pytest.mark.parametrize("key", VALID)
def test_no_key_may_be_missing(key: str) -> None:
    with pytest.raises(AssignmentError, match=key):
        read_assignment(json.dumps({k: v for k, v in VALID.items() if k != key}).encode())


@pytest.mark.parametrize("line", [b"\xff", b"{", b"[]", b"null", b"\x80\x04K\x01."])
def test_what_is_no_object_is_refused(line: bytes) -> None:
    with pytest.raises(AssignmentError):
        read_assignment(line)


@given(st.integers(0, 10**6), st.sampled_from(Word))
def test_what_is_said_is_heard(place: int, word: Word) -> None:
    assert heard(said(place, word) + "\r\n") == (place, word)


@pytest.mark.parametrize("line", ["standby: 1", "standby: x is warm", "a standby: 1 is warm", ""])
def test_nothing_else_is_heard(line: str) -> None:
    assert heard(line) is None
