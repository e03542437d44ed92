"""Turns on channels: the same whatever the cuts, and what each message says is told as what it is."""

from __future__ import annotations

import json
from typing import Any

import hypothesis
import pytest
from hypothesis import strategies as st
from mlx_lm.tokenizer_utils import TokenizerWrapper
from transformers import PreTrainedTokenizerFast

from server.api.harmony import ENDS, MARKS, MESSAGE, HarmonyReader, is_harmony
from server.api.reading import Call, WholeTurn, whole_turn
from tests.server.api.conftest import Client, events
from tests.server.api.fakes import TOKENIZER, FakeEngine, Script, make_service

ANALYSIS = "<|channel|>analysis<|message|>"
FINAL = "<|channel|>final<|message|>"
CALL = "<|channel|>commentary to=functions.look <|constrain|>json<|message|>"
NEXT = "<|end|><|start|>assistant"


def read(pieces: list[str], most: int | None = None) -> WholeTurn:
    reader = HarmonyReader(["look", "find"], str, most)
    parts = [part for piece in pieces for part in reader.push(piece)]
    return whole_turn([*parts, *reader.flush()])


LOOK = Call("0", "look", '{"at": 1}')
TURNS: list[tuple[str, WholeTurn]] = [
    (f"{ANALYSIS}hm{NEXT}{FINAL}Yes", WholeTurn("Yes", "hm", ())),
    (f"{ANALYSIS}hm{NEXT}{FINAL}Yes<|return|>", WholeTurn("Yes", "hm", ())),
    (f"{ANALYSIS}a{NEXT}{ANALYSIS}b{NEXT}{FINAL}c", WholeTurn("c", "ab", ())),
    (f"{FINAL} Yes ", WholeTurn(" Yes ", "", ())),
    (f'{ANALYSIS}hm{NEXT}{CALL}{{"at": 1}}', WholeTurn("", "hm", (LOOK,))),
    (f'{CALL}{{"at": 1}}<|call|>', WholeTurn("", "", (LOOK,))),
    # Where the recipient comes before the channel.
    (
        ' to=functions.look<|channel|>commentary json<|message|>{"at": 1}',
        WholeTurn("", "", (LOOK,)),
    ),
    (
        f'{CALL}{{"at": 1}}<|call|><|start|>assistant<|channel|>commentary to=functions.find<|message|>{{}}',
        WholeTurn("", "", (LOOK, Call("1", "find", "{}"))),
    ),
    (
        f'<|channel|>commentary<|message|>I look.{NEXT}{CALL}{{"at": 1}}',
        WholeTurn("I look.", "", (LOOK,)),
    ),
    # What is no call: cut off, no object, for nobody that there is.
    (f'{CALL}{{"at": ', WholeTurn('{"at": ', "", ())),
    (f"{CALL}[1]", WholeTurn("[1]", "", ())),
    ("<|channel|>commentary to=functions.drop<|message|>{}", WholeTurn("{}", "", ())),
    ("<|channel|>commentary to=browser.search<|message|>{}", WholeTurn("{}", "", ())),
    # Cut off by the number of tokens.
    (f"{ANALYSIS}hm", WholeTurn("", "hm", ())),
    (f"{ANALYSIS}hm{NEXT}<|channel|>fi", WholeTurn("", "hm", ())),
    ("<|channel|>ana", WholeTurn("", "", ())),
    ("", WholeTurn("", "", ())),
    # Without any channel, as where a grammar holds the output.
    ('{"a": "<b> to=x"}', WholeTurn('{"a": "<b> to=x"}', "", ())),
    ("to=me", WholeTurn("to=me", "", ())),
    ("< 3", WholeTurn("< 3", "", ())),
]


@pytest.mark.parametrize(("text", "expected"), TURNS)
def test_a_turn(text: str, expected: WholeTurn) -> None:
    assert read([text]) == expected
    assert read(list(text)) == expected


def test_what_exceeds_the_calls_is_content() -> None:
    text = f'{CALL}{{"at": 1}}<|call|><|start|>assistant{CALL}{{"at": 2}}'
    assert read([text], most=1) == WholeTurn('{"at": 2}', "", (LOOK,))


@hypothesis.settings(max_examples=300, deadline=None)
@hypothesis.given(data=st.data())
def test_the_cuts_do_not_matter(data: st.DataObject) -> None:
    words = st.sampled_from(
        [*MARKS, "assistant", "analysis", "final", "commentary", "to=functions.look", " "]
    )
    text = "".join(
        data.draw(st.lists(st.one_of(words, st.text("{}<|>a ", max_size=6)), max_size=20))
    )
    places = sorted(data.draw(st.sets(st.integers(0, len(text)), max_size=12)))
    pieces = [text[a:b] for a, b in zip([0, *places], [*places, len(text)], strict=True)]
    assert read(pieces) == read([text])


@hypothesis.settings(max_examples=200, deadline=None)
@hypothesis.given(
    messages=st.lists(
        st.tuples(
            st.sampled_from(["analysis", "final", "commentary"]), st.text("ab{}<>| \n", max_size=12)
        ),
        max_size=6,
    )
)
def test_what_is_said_on_each_channel(messages: list[tuple[str, str]]) -> None:
    hypothesis.assume(not any(mark in text for _, text in messages for mark in (*ENDS, MESSAGE)))
    said = NEXT.join(f"<|channel|>{channel}<|message|>{text}" for channel, text in messages)
    turn = read(list(said))
    assert turn.reasoning == "".join(text for channel, text in messages if channel == "analysis")
    assert turn.content == "".join(text for channel, text in messages if channel != "analysis")


def test_thinking_is_over_with_the_answer() -> None:
    reader = HarmonyReader()
    seen = []
    for piece in (ANALYSIS, "hm", NEXT, FINAL, "Yes"):
        reader.push(piece)
        seen.append(reader.thinking)
    assert seen == [True, True, False, False, False]


# through the API


def harmony_tokenizer() -> TokenizerWrapper:
    inner = TOKENIZER._tokenizer
    fast = PreTrainedTokenizerFast(
        tokenizer_object=type(inner.backend_tokenizer).from_str(inner.backend_tokenizer.to_str()),
        eos_token="</s>",
        chat_template="{% for m in messages %}{{ m.content }}{% endfor %}"
        "{% for t in tools or [] %}[{{ t.function.name }}]{% endfor %}<|start|>assistant",
    )
    fast.add_special_tokens({"additional_special_tokens": list(MARKS)})
    return TokenizerWrapper(fast)


HARMONY = harmony_tokenizer()
TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}


def client_that_says(engine: FakeEngine, text: str) -> Client:
    engine.script = Script(list(HARMONY.encode(text, add_special_tokens=False)))
    service = make_service(engine, tokenizer=HARMONY)
    assert service.model is not None
    object.__setattr__(service.model, "vocab_size", len(HARMONY.get_vocab()))
    return Client(service)


def test_an_answer_through_the_api(engine: FakeEngine) -> None:
    assert is_harmony(HARMONY)
    assert not is_harmony(TOKENIZER)
    client = client_that_says(engine, f"{ANALYSIS}hello{NEXT}{FINAL}world")
    answer = client.chat(reasoning_effort="high", stop=None).json()
    message = answer["choices"][0]["message"]
    assert (message["reasoning_content"], message["content"]) == ("hello", "world")
    details = answer["usage"]["completion_tokens_details"]
    assert 0 < details["reasoning_tokens"] < answer["usage"]["completion_tokens"]
    streamed = events(client.chat(stream=True))
    deltas: list[dict[str, Any]] = [chunk["choices"][0]["delta"] for chunk in streamed]
    assert "".join(delta.get("reasoning_content", "") for delta in deltas) == "hello"
    assert "".join(delta.get("content", "") for delta in deltas) == "world"


def test_a_call_through_the_api(engine: FakeEngine) -> None:
    client = client_that_says(engine, f'{ANALYSIS}hm{NEXT}{CALL}{{"at": 1}}')
    answer = client.chat(tools=[TOOL]).json()
    choice = answer["choices"][0]
    assert choice["finish_reason"] == "tool_calls"
    [call] = choice["message"]["tool_calls"]
    assert json.loads(call["function"]["arguments"]) == {"at": 1}
    assert "[look]" in HARMONY.decode(engine.requests[0].prompt)  # the template writes the tools


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tool_choice": "required"}, "tool_choice"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
    ],
)
def test_what_can_not_be_enforced_is_refused(
    engine: FakeEngine, fields: dict[str, Any], param: str
) -> None:
    response = client_that_says(engine, "x").chat(tools=[TOOL], **fields)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == param
