"""What a request is, inside the engine: token ids, parameters and a seed; and what comes back.

These records cross threads and (as parts of frames) processes, so they are frozen and validated when decoded.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Annotated, Literal, Protocol

import msgspec

FinishReason = Literal["stop", "length"]

Probability = Annotated[float, msgspec.Meta(ge=0.0, le=1.0)]
Count = Annotated[int, msgspec.Meta(ge=0)]
TokenId = Annotated[int, msgspec.Meta(ge=0, lt=1 << 31)]  # MLX gets them as int32


MAX_GRAMMAR_CHARS = 256 << 10
Mark = Annotated[tuple[TokenId, ...], msgspec.Meta(min_length=1)]  # tokens in a row


class Constraint(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A grammar that the output of one sequence has to follow.

    It applies from the beginning, or from where the marks `after` have come, in this order; an output that does
    not begin with the `opening`, if there is one, need not have the first of them.  `ends` are the model's own
    end tokens: they are allowed exactly where the grammar may end, and before it applies only if it is
    `optional`.
    """

    kind: Literal["json_schema", "regex", "lark"]
    text: Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_GRAMMAR_CHARS)]
    ends: Annotated[tuple[TokenId, ...], msgspec.Meta(min_length=1)]
    after: tuple[Mark, ...] = ()
    opening: TokenId | None = None
    optional: bool = False


class SamplingParams(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How the next token of one sequence is chosen.  Travels once, to the last stage.

    Randomness is a function of (seed, number of tokens emitted so far) only, so that a request gives the same
    tokens alone, in any batch, over any number of ranks, and after a resume.
    """

    seed: Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)] = 0
    temperature: Annotated[float, msgspec.Meta(ge=0.0)] = 1.0  # 0: greedy
    top_p: Probability = 1.0
    top_k: Count = 0  # 0: off
    min_p: Probability = 0.0
    repetition_penalty: Annotated[float, msgspec.Meta(gt=0.0)] = 1.0  # over prompt and output
    presence_penalty: float = 0.0  # over the output only
    frequency_penalty: float = 0.0  # over the output only
    logit_bias: dict[int, float] = {}
    min_tokens: Count = (
        0  # `end_tokens` can't be sampled before, unless a constraint leaves nothing else
    )
    end_tokens: tuple[TokenId, ...] = ()  # end of sequence, and the request's stop_token_ids
    logprobs: Annotated[int, msgspec.Meta(ge=-1)] = -1  # -1: none; k: the token's and the k best
    constraint: Constraint | None = None


class TokenLogprobs(msgspec.Struct, frozen=True):
    """Natural log of the probabilities of one step, before temperature, penalties and filters."""

    chosen: float
    top: tuple[tuple[int, float], ...] = ()  # (token id, log probability), best first


class GenerationRequest(msgspec.Struct, frozen=True, kw_only=True):
    """One sequence to generate.  (prompt, params, emitted) is all that a resume needs."""

    id: str
    prompt: tuple[TokenId, ...]  # at least one token
    params: SamplingParams
    max_tokens: Annotated[int, msgspec.Meta(ge=1)]
    emitted: tuple[TokenId, ...] = ()  # already delivered before a resume
    tenant: str = ""  # who asks: requests of several take turns, those of one wait for each other
    origin: str = ""  # id of the HTTP request, for logs of all ranks
    trace: str = ""  # W3C traceparent of its span; empty: it is not traced


class TokenEvent(msgspec.Struct, frozen=True):
    """One generated token.  `finish` is set on the last one.

    A token from `params.end_tokens` ends the sequence with finish "stop" and is delivered too, so that usage
    counts it; it is for the receiver to keep it out of the text.
    """

    token: int
    finish: FinishReason | None = None
    logprobs: TokenLogprobs | None = None
    cached: int = 0  # on the first one: prompt tokens that were not prefilled
    queued: float | None = None  # on the first one: seconds before it had a place on the stages


class Generator(Protocol):
    """What the HTTP side needs of the engine."""

    def generate(self, request: GenerationRequest) -> AsyncGenerator[TokenEvent, None]:
        """Yield the tokens of `request` as they are made.

        Closing the iterator cancels the request on every stage.  Raises ContextTooLong, QueueFull or
        EngineStopped before the first token, and EngineFault if the engine breaks while the request runs.
        """
        ...
