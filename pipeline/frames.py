"""Frames: what one rank tells the next, over the TCP link.

A frame says what comes next; hidden states follow it through mx.distributed.  Every rank applies the same
frames in the same order, and that order is the only synchronisation.  On the wire a frame is a 4-byte
big-endian length and a msgpack map whose "type" names the record.

    rank r                                   rank r + 1
    Step(k)   before computing               builds its graph on a lazy recv
    compute
    Ready(k)  the tensors are there          posts recv, computes
    tensors ------------------------------>
    ...                                      the last rank answers rank 0 with Result(k)

Small tensors are in Ready itself (pipeline/parcel.py): the graph is built on blanks, and nothing is received.
"""

from __future__ import annotations

import sys
from typing import Annotated

import msgspec

from pipeline.errors import FrameError
from pipeline.request import Count, SamplingParams, TokenId, TokenLogprobs
from pipeline.split import TensorSpec

PROTOCOL = 7
MAX_FRAME_BYTES = 64 << 20
"""A frame holds at most one prompt, 5 bytes a token: this is room for millions of tokens."""

HEADER_BYTES = 4

ShortText = Annotated[str, msgspec.Meta(max_length=256)]
SequenceId = Annotated[int, msgspec.Meta(ge=0)]
Seconds = Annotated[float, msgspec.Meta(ge=0.0, le=sys.float_info.max)]
Part = Annotated[float, msgspec.Meta(ge=0.0, le=sys.float_info.max)]
"""Of a whole; above 1, more than the whole."""


class Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Both sides speak the same protocol, so a field too many is as wrong as one too few."""


class Hello(Record, frozen=True, tag="hello", tag_field="type"):
    """First frame of a connection, from rank `rank` to the next one."""

    protocol: int
    epoch: Count  # one launch of the ring; a process of an earlier launch is refused
    rank: Count
    size: Annotated[int, msgspec.Meta(ge=1)]


class Welcome(Record, frozen=True, tag="welcome", tag_field="type"):
    """The answer to Hello."""

    rank: Count


class Admission(Record, frozen=True):
    """A sequence travels whole once; later frames name it by its id only.

    It gets empty caches, or copies of the first `length` tokens of another sequence's.
    """

    sequence: SequenceId
    params: SamplingParams
    prompt: tuple[TokenId, ...] = ()  # only where the sampler needs it (repetition penalty)
    emitted: tuple[TokenId, ...] = ()  # tokens delivered before a resume
    source: SequenceId | None = None
    length: Count = 0
    origin: ShortText = ""  # id of the HTTP request, for logs
    trace: ShortText = ""  # W3C traceparent of its span; empty: it is not traced


class Prefill(Record, frozen=True, tag="prefill", tag_field="type"):
    """Feed tokens of prompts to the caches of their sequences; nothing is sampled.

    Several are computed side by side, padded to the longest: only where no model loops.
    """

    sequences: Annotated[tuple[SequenceId, ...], msgspec.Meta(min_length=1)]
    tokens: Annotated[
        tuple[Annotated[tuple[TokenId, ...], msgspec.Meta(min_length=1)], ...],
        msgspec.Meta(min_length=1),
    ]  # of each


class Decode(Record, frozen=True, tag="decode", tag_field="type"):
    """One token for each sequence of a micro-batch; the last stage samples the next ones.

    `sequences` is the whole membership in batch order: those already in the group keep their order, newcomers
    follow.
    """

    group: Count
    sequences: Annotated[tuple[SequenceId, ...], msgspec.Meta(min_length=1)]
    tokens: Annotated[tuple[TokenId, ...], msgspec.Meta(min_length=1)]


class Step(Record, frozen=True, tag="step", tag_field="type"):
    """One unit of work for every stage.

    First the admissions, then the ends, so that a sequence can start from one that goes, then the forward pass.
    """

    id: Count
    released: tuple[SequenceId, ...] = ()
    admitted: tuple[Admission, ...] = ()
    retained: tuple[SequenceId, ...] = ()  # finished; to be copied from, until released
    work: Prefill | Decode | None = None
    loop: Count = 0  # which time the hidden state goes round; above 0 where a model loops
    tensors: tuple[TensorSpec, ...] = ()  # what the sender will send after Ready


class Ready(Record, frozen=True, tag="ready", tag_field="type"):
    """The tensors of a step are computed, and follow at once if they are not in here."""

    step: Count
    seconds: tuple[Seconds, ...] = ()  # of each stage so far, once for each loop
    memory: Part = 0.0  # used of its share, by the fullest of these stages
    parcel: bytes = b""  # small tensors


class Result(Record, frozen=True, tag="result", tag_field="type"):
    """The last stage has finished a step."""

    step: Count
    tokens: tuple[TokenId, ...] = ()  # in the order of Decode.sequences; empty for a prefill
    logprobs: tuple[TokenLogprobs | None, ...] = ()  # empty when no sequence asked
    broken: tuple[SequenceId, ...] = ()  # whose logits can't be sampled; their tokens mean nothing
    refused: dict[SequenceId, str] = {}  # those of them whose constraint can't go on, and why
    seconds: tuple[Seconds, ...] = ()
    memory: Part = 0.0


class Loaded(Record, frozen=True, tag="loaded", tag_field="type"):
    """Goes round once: each rank passes it on when its weights are in memory; back on rank 0, all have them."""

    kv_tokens: Count | None = None  # that fit on the tightest stage so far; None: no limit known


class Goodbye(Record, frozen=True, tag="goodbye", tag_field="type"):
    """Orderly end: each rank passes it on and leaves its loop."""


Frame = Hello | Welcome | Loaded | Step | Ready | Result | Goodbye

_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[Frame] = msgspec.msgpack.Decoder(Frame)


def encode(frame: Frame) -> bytes:
    """Bytes of a frame, length included.

    Raises FrameError if it is longer than MAX_FRAME_BYTES.
    """
    body = _encoder.encode(frame)
    if len(body) > MAX_FRAME_BYTES:
        raise FrameError(f"a frame of {len(body)} bytes exceeds {MAX_FRAME_BYTES}")
    return len(body).to_bytes(HEADER_BYTES, "big") + body


def body_length(header: bytes) -> int:
    """Length in bytes of the body that follows a 4-byte header.

    Raises FrameError if no frame can be that long, which means that the peer does not speak this protocol.
    """
    length = int.from_bytes(header, "big")
    if not 0 < length <= MAX_FRAME_BYTES:
        raise FrameError(f"a frame announces {length} bytes; 1 to {MAX_FRAME_BYTES} are possible")
    return length


def decode(body: bytes | bytearray | memoryview) -> Frame:
    """The frame in `body` (without its length).

    Raises FrameError naming the field that is wrong.
    """
    try:
        frame = _decoder.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise FrameError(f"not a valid frame: {error}") from error
    if isinstance(frame, Step):
        _check_step(frame)
    if isinstance(frame, Result) and len(frame.logprobs) not in (0, len(frame.tokens)):
        raise FrameError(
            f"step {frame.step}: {len(frame.logprobs)} logprobs for {len(frame.tokens)} tokens"
        )
    return frame


def _check_step(step: Step) -> None:
    work = step.work
    for admission in step.admitted:
        if (admission.source is None) != (admission.length == 0):
            raise FrameError(
                f"step {step.id}: sequence {admission.sequence} is to have {admission.length}"
                f" tokens of {admission.source}"
            )
    if work is not None:
        if len(work.sequences) != len(work.tokens):
            raise FrameError(
                f"step {step.id}: {len(work.tokens)} tokens for {len(work.sequences)} sequences"
            )
        if len(set(work.sequences)) != len(work.sequences):
            raise FrameError(f"step {step.id}: a sequence is twice in {work.sequences}")
