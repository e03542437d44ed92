"""From HTTP fields to the engine's parameters: defaults, and checks that need the model or two fields."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from hashlib import blake2b
from typing import TypeVar

from pipeline.errors import ContextTooLong
from pipeline.request import Constraint, SamplingParams
from server.access import account
from server.api.errors import InvalidRequest
from server.api.schemas import ChatBody, CompletionBody, GenerationBody
from server.api.service import ServedModel
from server.replay.journal import context

N = TypeVar("N", int, float)

SEED_BITS = 63
COMPLETION_MAX_TOKENS = 16  # OpenAI's default for the older endpoint

# Below this, logits divided by the temperature leave float32, and the choice is the best token anyway.
LEAST_TEMPERATURE = 1e-3


def sampling(
    body: GenerationBody,
    model: ServedModel,
    logprobs: int,
    seed: int,
    constraint: Constraint | None = None,
) -> SamplingParams:
    """The sampling parameters `body` asks for; what it leaves open is as the model's author recommends.

    logprobs: as in SamplingParams.
    """
    defaults = model.defaults
    temperature = _or(body.temperature, defaults.temperature)
    stop_ids = body.stop_token_ids or ()
    _check_vocabulary(stop_ids, model, "stop_token_ids")
    end_tokens = () if body.ignore_eos else model.end_tokens
    return SamplingParams(
        seed=seed,
        temperature=temperature if temperature >= LEAST_TEMPERATURE else 0.0,
        top_p=_or(body.top_p, defaults.top_p),
        # More than all is all, and the ranks count in 32 bits.
        top_k=min(max(_or(body.top_k, defaults.top_k), 0), model.vocab_size),
        min_p=_or(body.min_p, defaults.min_p),
        repetition_penalty=_or(body.repetition_penalty, defaults.repetition_penalty),
        presence_penalty=_or(body.presence_penalty, 0.0),
        frequency_penalty=_or(body.frequency_penalty, 0.0),
        logit_bias=_logit_bias(body.logit_bias or {}, model),
        min_tokens=_or(body.min_tokens, 0),
        end_tokens=tuple(dict.fromkeys((*end_tokens, *stop_ids))),
        logprobs=logprobs,
        constraint=constraint,
    )


def check_places(sequences: int, prompts: int, limit: int) -> None:
    """Refuse a request that could never get places for all of its sequences."""
    if sequences > limit:
        param = "n" if prompts == 1 else "prompt"
        message = f"{param} asks for {sequences} sequences; at most {limit} can be served together."
        raise InvalidRequest(message, param=param)


def check_stream_options(body: GenerationBody) -> None:
    if body.stream_options is not None and not body.stream:
        raise InvalidRequest("stream_options needs stream: true.", param="stream_options")


def chat_logprobs(body: ChatBody) -> int:
    """SamplingParams.logprobs for a chat request."""
    if body.logprobs:
        return body.top_logprobs or 0
    if body.top_logprobs is not None:
        raise InvalidRequest("top_logprobs needs logprobs: true.", param="top_logprobs")
    return -1


def completion_logprobs(body: CompletionBody) -> int:
    return _or(body.logprobs, -1)


def chat_max_tokens(body: ChatBody) -> int | None:
    """The asked number of output tokens, None for as many as fit."""
    old, new = body.max_tokens, body.max_completion_tokens
    if old is not None and new is not None and old != new:
        raise InvalidRequest(
            f"max_tokens ({old}) and max_completion_tokens ({new}) contradict each other.",
            param="max_tokens",
        )
    return old if new is None else new


def fit(
    prompt: Sequence[int],
    max_tokens: int | None,
    body: GenerationBody,
    model: ServedModel,
    param: str,
) -> int:
    """Number of output tokens for a prompt; None stands for the rest of the context.

    param: the field that holds the prompt.  Raises InvalidRequest when prompt and output exceed the context,
    min_tokens exceeds the output, or the output what the key may ask for.
    """
    if not prompt:
        raise InvalidRequest(f"{param} has no tokens.", param=param)
    asked = len(prompt) + (max_tokens or 1)
    if asked > model.max_model_len:
        message = str(ContextTooLong(asked, model.max_model_len))
        raise InvalidRequest(message, param=param, code="context_length_exceeded")
    most = account.current().max_tokens
    if most is not None and (max_tokens or 0) > most:
        message = f"This key may ask for at most {most} output tokens, not {max_tokens}."
        raise InvalidRequest(message, param="max_tokens")
    room = max_tokens or min(model.max_model_len - len(prompt), most or model.max_model_len)
    if body.min_tokens is not None and body.min_tokens > room:
        message = f"min_tokens ({body.min_tokens}) exceeds the {room} tokens that may be generated."
        raise InvalidRequest(message, param="min_tokens")
    return room


def check_ids(ids: Iterable[int], model: ServedModel, param: str) -> None:
    """Raises InvalidRequest for a token id that the model does not know."""
    _check_vocabulary(ids, model, param)


def _or(value: N | None, default: N) -> N:
    return default if value is None else value


def seeds(asked: int | None, count: int, before: int = 0) -> list[int]:
    """A seed for each of `count` choices of one prompt; the first is the one that was asked for.

    before: choices of other prompts of the request, which get other seeds unless one was asked for.
    """
    if asked is None:
        return [context().seed(before + index, SEED_BITS) for index in range(count)]
    # 63 bits: the sign of a negative seed is dropped from its two's complement.
    first = asked & ((1 << SEED_BITS) - 1)
    return [first, *(_derived(first, index) for index in range(1, count))]


def _derived(seed: int, index: int) -> int:
    digest = blake2b(f"{seed}/{index}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> (64 - SEED_BITS)


def _check_vocabulary(ids: Iterable[int], model: ServedModel, param: str) -> None:
    size = model.vocab_size
    for token in ids:
        if not 0 <= token < size:
            message = f"{param}: token id {token} is not in the vocabulary of {size} tokens."
            raise InvalidRequest(message, param=param)


def _logit_bias(asked: dict[str, float], model: ServedModel) -> dict[int, float]:
    for key in asked:
        if not (key.isascii() and key.isdigit() and len(key) <= 10):
            message = f"logit_bias: {key[:80]!r} is not a token id."
            raise InvalidRequest(message, param=f"logit_bias.{key[:80]}")
    _check_vocabulary(map(int, asked), model, "logit_bias")
    return {int(key): bias for key, bias in asked.items()}
