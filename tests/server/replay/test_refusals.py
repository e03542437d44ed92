"""What is told of a request by whoever repeats it is checked before it counts."""

from __future__ import annotations

import struct
from typing import Any

import pytest

from pipeline.request import TokenEvent, TokenLogprobs
from server.replay.journal import Entry
from server.replay.records import (
    KEPT_HEADER,
    MAX_EVENTS,
    MAX_PAYLOAD,
    Context,
    Kind,
    Record,
    RecordReader,
    Start,
)
from tests.server.api.fakes import TOKENIZER
from tests.server.replay.engine import PureEngine, ask, ask_raw, make_app

CONTEXT = Context(1_700_000_000, "a" * 32)
BODY = {"model": "tiny", "prompt": ["a", "b"], "max_tokens": 3}
PATH = "/v1/completions"
SIZE = len(TOKENIZER.get_vocab())


def entry(index: int = 0, token: int = 7, **more: Any) -> bytes:
    return Entry(index, TokenEvent(token, **more)).record.encoded


@pytest.mark.parametrize(
    ("events", "said"),
    [
        (entry(index=2), "choice 2 of 2"),
        (entry(index=-1), "choice -1 of 2"),
        (entry(token=SIZE), f"no token {SIZE}"),
        (entry(token=-1), "no token -1"),
        (entry(logprobs=TokenLogprobs(-1.0, ((SIZE, -1.0),))), f"no token {SIZE}"),
        (entry(cached=-1), "can't be cached"),
        (entry(finish="stop") + entry(), "after the end of choice 0"),
        (entry() * 4, "more than 3 tokens"),
        (entry() * 3, "all of its 3 tokens"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_events_that_the_request_can_not_have(events: bytes, said: str, stream: bool) -> None:
    engine = PureEngine()
    records = ask(make_app(engine), PATH, {**BODY, "stream": stream}, CONTEXT, events)
    text = b"".join(record.payload for record in records if record.kind is Kind.BODY).decode()
    assert said in text
    assert '"invalid_request_error"' in text
    assert not engine.running


@pytest.mark.parametrize(
    ("header", "events"),
    [
        ("", b""),
        ("1.2.3", b""),
        (f"1.{'g' * 32}.0", b""),
        (f"1.{'a' * 32}.-1", b""),
        (f"1.{'a' * 32}.{MAX_EVENTS + 1}", b""),
        (CONTEXT.header(1 << 20), b""),  # the body ends before
        (CONTEXT.header(3), b"abc"),
        (CONTEXT.header(6), b"J\0\0\0\1\xc1"),
        (CONTEXT.header(5), b"J" + struct.pack(">I", MAX_PAYLOAD + 1)),
        (CONTEXT.header(5), Record(Kind.END).encoded),
        (CONTEXT.header(5), b"?\0\0\0\0"),
        (CONTEXT.header(len(entry())), entry()[:-1] + b"\xc1"),
    ],
)
def test_what_is_no_journal_is_refused(header: str, events: bytes) -> None:
    engine = PureEngine()
    response = ask_raw(make_app(engine), PATH, BODY, header, events)
    assert response.status_code == 400
    assert response.json()["error"]["type"] == "invalid_request_error"
    assert not engine.requests


KEPT = Record(Kind.KEEP, b"{}").encoded


@pytest.mark.parametrize(
    ("length", "kept"),
    [
        ("x", b""),
        ("-1", b""),
        (str(MAX_PAYLOAD), b""),
        (str(1 << 20), b""),  # the body ends before
        ("3", b"abc"),
        (str(len(KEPT) - 1), KEPT),
        (str(2 * len(KEPT)), KEPT * 2),
        ("5", Record(Kind.END).encoded),
    ],
)
def test_what_is_no_record_of_a_response_is_refused(length: str, kept: bytes) -> None:
    engine = PureEngine()
    app, headers = make_app(engine), {KEPT_HEADER: length}
    response = ask_raw(app, PATH, BODY, CONTEXT.header(), kept, headers)
    assert response.status_code == 400
    assert response.json()["error"]["type"] == "invalid_request_error"
    assert not engine.requests


def test_a_record_that_holds_no_response_is_refused() -> None:
    asked = {"model": "tiny", "input": "hi", "previous_response_id": "resp_1"}
    app, headers = make_app(PureEngine()), {KEPT_HEADER: str(len(KEPT))}
    response = ask_raw(app, "/v1/responses", asked, CONTEXT.header(), KEPT, headers)
    records = list(RecordReader().feed(response.content))
    assert Start.of(records[0].payload).status == 400


def test_an_answer_of_the_request_s_own_has_its_status() -> None:
    records = ask(make_app(PureEngine()), PATH, {**BODY, "temperature": -1}, CONTEXT)
    assert Start.of(records[0].payload).status == 400


@pytest.mark.parametrize("size", [1, 2, 5, 1000])
def test_records_are_read_however_they_arrive(size: int) -> None:
    written = [Record(Kind.START, b"head"), Record(Kind.BODY, b""), Record(Kind.BODY, b"x" * 300)]
    data = b"".join(record.encoded for record in written)
    reader, read = RecordReader(), []
    for at in range(0, len(data), size):
        read += reader.feed(data[at : at + size])
    assert read == written
    assert reader.complete
