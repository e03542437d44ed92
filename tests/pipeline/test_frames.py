"""Frames: what goes in comes out, and whatever else comes in is a FrameError."""

from __future__ import annotations

from typing import Any, get_args

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import frames
from pipeline.errors import FrameError
from pipeline.frames import (
    Admission,
    Decode,
    Frame,
    Goodbye,
    Hello,
    Loaded,
    Prefill,
    Ready,
    Result,
    Step,
    Welcome,
)
from pipeline.request import SamplingParams, TokenLogprobs
from pipeline.split import TensorSpec

COUNTS = st.integers(0, 1 << 40)
TOKENS = st.integers(0, 1 << 18)
REALS = st.floats(allow_nan=False, allow_infinity=False)
POSITIVE = st.floats(min_value=0.0, allow_infinity=False)


def tuples(items: st.SearchStrategy[Any], least: int = 0, most: int = 5) -> st.SearchStrategy[Any]:
    return st.lists(items, min_size=least, max_size=most).map(tuple)


PARAMS = st.builds(
    SamplingParams,
    seed=st.integers(0, (1 << 63) - 1),
    temperature=POSITIVE,
    top_p=st.floats(0.0, 1.0),
    top_k=COUNTS,
    repetition_penalty=st.floats(0.1, 10.0),
    presence_penalty=REALS,
    logit_bias=st.dictionaries(TOKENS, REALS, max_size=3),
    end_tokens=tuples(TOKENS),
    logprobs=st.integers(-1, 20),
)
SPECS = st.builds(
    TensorSpec,
    path=st.sampled_from([".hidden", ".kv(0/2)[1/3]", ""]),
    shape=tuples(st.integers(0, 64), 1, 4),
    dtype=st.sampled_from(["float32", "bfloat16", "int32"]),
)
PREFILLS = st.dictionaries(COUNTS, tuples(TOKENS, least=1), min_size=1, max_size=3).flatmap(
    lambda fed: st.builds(
        Prefill, sequences=st.just(tuple(fed)), tokens=st.just(tuple(fed.values()))
    )
)
DECODES = st.dictionaries(COUNTS, TOKENS, min_size=1, max_size=5).flatmap(
    lambda fed: st.builds(
        Decode, group=COUNTS, sequences=st.just(tuple(fed)), tokens=st.just(tuple(fed.values()))
    )
)
LOGPROBS = st.builds(TokenLogprobs, chosen=REALS, top=tuples(st.tuples(TOKENS, REALS)))
RESULTS = tuples(TOKENS).flatmap(
    lambda tokens: st.builds(
        Result,
        step=COUNTS,
        tokens=st.just(tokens),
        logprobs=st.just(()) | tuples(st.none() | LOGPROBS, len(tokens), len(tokens)),
        seconds=tuples(POSITIVE),
    )
)
ADMISSIONS = st.sampled_from([(None, 0), (0, 1), (7, 1 << 20)]).flatmap(
    lambda copied: st.builds(
        Admission,
        sequence=COUNTS,
        params=PARAMS,
        prompt=tuples(TOKENS),
        emitted=tuples(TOKENS),
        source=st.just(copied[0]),
        length=st.just(copied[1]),
    )
)
KINDS: dict[type, st.SearchStrategy[Any]] = {
    Hello: st.builds(
        Hello, protocol=st.integers(), epoch=COUNTS, rank=COUNTS, size=st.integers(1, 99)
    ).filter(lambda hello: abs(hello.protocol) < 1 << 63),
    Welcome: st.builds(Welcome, rank=COUNTS),
    Loaded: st.builds(Loaded, kv_tokens=st.none() | COUNTS),
    Step: st.builds(
        Step,
        id=COUNTS,
        released=tuples(COUNTS),
        admitted=tuples(ADMISSIONS),
        retained=tuples(COUNTS),
        work=st.none() | PREFILLS | DECODES,
        loop=st.integers(0, 4),
        tensors=tuples(SPECS),
    ),
    Ready: st.builds(Ready, step=COUNTS, seconds=tuples(POSITIVE)),
    Result: RESULTS,
    Goodbye: st.just(Goodbye()),
}
FRAMES = st.one_of(*KINDS.values())


def body_of(frame: Frame) -> bytes:
    return frames.encode(frame)[frames.HEADER_BYTES :]


def test_every_frame_is_covered_here() -> None:
    assert set(KINDS) == set(get_args(Frame))


@pytest.mark.parametrize("kind", KINDS)
def test_round_trip(kind: type) -> None:
    @given(KINDS[kind])
    @settings(max_examples=40, deadline=None)
    def check(frame: Frame) -> None:
        data = frames.encode(frame)
        header, body = data[: frames.HEADER_BYTES], data[frames.HEADER_BYTES :]
        assert frames.body_length(header) == len(body)
        decoded = frames.decode(body)
        assert decoded == frame
        assert type(decoded) is kind

    check()


def decodes_or_is_refused(body: bytes) -> None:
    try:
        frame = frames.decode(body)
    except FrameError:
        return
    assert frames.decode(body_of(frame)) == frame


@given(st.binary(max_size=200))
@settings(max_examples=200, deadline=None)
def test_any_bytes(body: bytes) -> None:
    decodes_or_is_refused(body)


@given(FRAMES.map(body_of), st.data())
@settings(max_examples=200, deadline=None)
def test_damaged_frames(body: bytes, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(body)))
    end = data.draw(st.integers(start, min(len(body), start + 4)))
    decodes_or_is_refused(body[:start] + data.draw(st.binary(max_size=4)) + body[end:])


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 63), (1 << 64) - 1) | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=10,
)
FIELDS = ("id", "step", "rank", "size", "work", "tokens", "released", "admitted", "tensors", "loop")
TAGS = ("hello", "welcome", "loaded", "step", "ready", "result", "goodbye", "prefill", "decode")


@given(st.dictionaries(st.sampled_from(FIELDS), VALUES), st.sampled_from(TAGS))
@settings(max_examples=200, deadline=None)
def test_wrong_values_in_known_fields(fields: dict[str, Any], tag: str) -> None:
    decodes_or_is_refused(msgspec.msgpack.encode({"type": tag, **fields}))


STEP = {"type": "step", "id": 1}
DECODE = {"type": "decode", "group": 0, "sequences": [3, 4], "tokens": [5, 6]}
PREFILL = {"type": "prefill", "sequences": [3, 4], "tokens": [[5], [6, 7]]}


@pytest.mark.parametrize(
    ("message", "told"),
    [
        ({"type": "welcome", "rank": -1}, r"\$\.rank"),
        ({"type": "welcome"}, "`rank`"),
        ({"type": "welcome", "rank": "0"}, r"\$\.rank"),
        ({"type": "welcome", "rank": 0, "size": 3}, "`size`"),
        ({"type": "hello", "protocol": 1, "epoch": 7, "rank": 0, "size": 0}, r"\$\.size"),
        ({"type": "hello", "protocol": 1, "epoch": "7", "rank": 0, "size": 1}, r"\$\.epoch"),
        ({"type": "nonsense"}, "nonsense"),
        ({"rank": 0}, "`type`"),
        ({"type": "ready", "step": 1, "seconds": [0.1, float("nan")]}, r"\$\.seconds\[1\]"),
        ({"type": "ready", "step": 1, "seconds": [float("inf")]}, r"\$\.seconds\[0\]"),
        ({"type": "ready", "step": 1, "seconds": [-1.0]}, r"\$\.seconds\[0\]"),
        (STEP | {"work": PREFILL | {"tokens": [[5], []]}}, r"\$\.work\.tokens\[1\]"),
        (STEP | {"work": PREFILL | {"sequences": [], "tokens": []}}, r"\$\.work\.sequences"),
        (STEP | {"work": PREFILL | {"tokens": [[5]]}}, "step 1: 1 tokens for 2 sequences"),
        (STEP | {"work": PREFILL | {"sequences": [3, 3]}}, r"step 1: .* twice in \(3, 3\)"),
        (STEP | {"work": DECODE | {"tokens": [5, -6]}}, r"\$\.work\.tokens\[1\]"),
        (STEP | {"work": DECODE | {"tokens": [5]}}, "step 1: 1 tokens for 2 sequences"),
        (STEP | {"work": DECODE | {"sequences": [3, 3]}}, r"step 1: .* twice in \(3, 3\)"),
        (
            STEP | {"admitted": [{"sequence": 1, "params": {"top_p": 2.0}}]},
            r"\$\.admitted\[0\]\.params\.top_p",
        ),
        (
            STEP | {"admitted": [{"sequence": 4, "params": {}, "source": 2}]},
            "step 1: sequence 4 is to have 0 tokens of 2",
        ),
        (
            STEP | {"admitted": [{"sequence": 4, "params": {}, "length": 3}]},
            "step 1: sequence 4 is to have 3 tokens of None",
        ),
        (STEP | {"tensors": [{"path": "", "shape": [1], "dtype": "object"}]}, "dtype 'object'"),
        (
            {"type": "result", "step": 4, "tokens": [1, 2], "logprobs": [None]},
            "step 4: 1 logprobs for 2 tokens",
        ),
    ],
)
def test_the_error_names_the_field(message: dict[str, Any], told: str) -> None:
    with pytest.raises(FrameError, match=told):
        frames.decode(msgspec.msgpack.encode(message))


@pytest.mark.parametrize(
    "body",
    [
        b"\x82\xa4type\xa7goodbye\xa1x" + b"\x91" * 100_000 + b"\xc0",  # nested 100,000 deep
        b"\x82\xa1x" + b"\x91" * 100_000 + b"\xc0\xa4type\xa7goodbye",
        b"\x81\xa4type\xa7goodb\xff\xfe",  # no UTF-8
        b"\x83\xa4type\xa5ready\xa4step\x01\xa7seconds\xdd\xff\xff\xff\xff",  # 4 G of entries
        b"",
        frames.encode(Goodbye()),  # with its length still in front
        frames.encode(Goodbye())[4:] + b"\0",
    ],
)
def test_hostile_bytes(body: bytes) -> None:
    with pytest.raises(FrameError, match="not a valid frame"):
        frames.decode(body)


@pytest.mark.parametrize("header", [b"\0\0\0\0", b"\x04\0\0\1", b"GET ", b"\xff\xff\xff\xff"])
def test_impossible_lengths(header: bytes) -> None:
    with pytest.raises(FrameError, match=r"announces \d+ bytes; 1 to \d+"):
        frames.body_length(header)


def test_the_longest_frame(monkeypatch: pytest.MonkeyPatch) -> None:
    frame = Step(0, work=Prefill((0,), ((70_000,) * 100,)))
    length = len(body_of(frame))
    monkeypatch.setattr(frames, "MAX_FRAME_BYTES", length)
    assert frames.body_length(frames.encode(frame)[: frames.HEADER_BYTES]) == length
    monkeypatch.setattr(frames, "MAX_FRAME_BYTES", length - 1)
    with pytest.raises(FrameError, match=f"a frame of {length} bytes exceeds {length - 1}"):
        frames.encode(frame)
