"""Thinking is told apart from the answer, however the text is cut."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.api.reading import TurnReader, WholeTurn, whole_turn
from server.api.reasoning import ThinkingMarks, ThinkingSplitter, is_closed, is_open
from tests.server.api.test_tool_scanner import CUTS, cut

MARKS = ThinkingMarks("<think>", "</think>", (1,), (2, 3))


def read(pieces: Sequence[str], *, begun: bool = False) -> WholeTurn:
    reader = TurnReader(ThinkingSplitter(MARKS, begun=begun))
    parts = [part for piece in pieces for part in reader.push(piece)]
    return whole_turn([*parts, *reader.flush()])


FRAGMENTS = st.sampled_from(
    ["<think>", "</think>", "<th", "ink>", "</", "\n", " ", "a", "b c", ">"]
)


@given(st.lists(FRAGMENTS, max_size=10).map("".join), CUTS, st.booleans())
def test_however_a_text_is_cut_it_says_the_same(text: str, places: list[int], begun: bool) -> None:
    assert read(cut(text, places), begun=begun) == read([text], begun=begun)
    assert read(list(text), begun=begun) == read([text], begun=begun)


@pytest.mark.parametrize(
    ("text", "begun", "reasoning", "content"),
    [
        ("<think>\nwell\n</think>\n\nYes.", False, "well", "Yes."),
        ("well\n</think>\n\nYes.\n", True, "well", "Yes.\n"),
        ("\n<think>a</think>b</think>", False, "a", "b</think>"),
        ("Yes, <think>no</think>", False, "", "Yes, <think>no</think>"),
        (" Yes", False, "", " Yes"),
        ("<think>cut off", False, "cut off", ""),
        ("<think></think>", False, "", ""),
        ("<thi", False, "", "<thi"),
        ("a < b </thin", True, "a < b </thin", ""),
        ("", False, "", ""),
    ],
)
def test_thinking_and_answer(text: str, begun: bool, reasoning: str, content: str) -> None:
    assert read([text], begun=begun) == WholeTurn(content, reasoning, ())


@pytest.mark.parametrize(
    ("prompt", "opened", "closed"),
    [
        ([5, 6], False, False),
        ([5, 1], True, False),
        ([5, 1, 9], True, False),
        ([1, 5, 2, 3], False, True),
        ([1, 5, 2, 3, 9, 9], False, True),
        ([1, 5, 2, 3, 5, 5, 5, 5, 5, 5, 5, 5, 5, 5, 5], False, False),
        ([1, 2, 3, 7, 1], True, True),
    ],
)
def test_prompts_that_end_in_thinking(prompt: list[int], opened: bool, closed: bool) -> None:
    assert is_open(prompt, MARKS) is opened
    assert is_closed(prompt, MARKS) is closed
