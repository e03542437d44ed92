"""A scripted engine and a small real tokenizer: what the API needs of the rest, without a model."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field
from typing import Any

from mlx_lm.tokenizer_utils import TokenizerWrapper
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from pipeline.request import GenerationRequest, TokenEvent, TokenLogprobs
from server.api.service import ServedModel, Service

SPECIAL = ("<s>", "</s>", "<|user|>", "<|assistant|>", "<|system|>", "<|entré|>")
END = "</s>"
MERGES = (("h", "e"), ("l", "l"), ("he", "ll"), ("hell", "o"), ("Ġ", "w"), ("Ġw", "o"))

CHAT_TEMPLATE = (
    "{% for m in messages %}"
    "{% if m.content == 'refuse me' %}{{ raise_exception('no such talk') }}{% endif %}"
    "<|{{ m.role }}|>{% if m.name %}{{ m.name }}: {% endif %}{{ m.content }}</s>"
    "{% endfor %}"
    "{% if shout %}!{% endif %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def make_tokenizer(chat_template: str | None = CHAT_TEMPLATE) -> TokenizerWrapper:
    """Byte-level BPE with all 256 bytes and a few merges; special tokens come first."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [*SPECIAL, *letters, *("".join(pair) for pair in MERGES)]
    vocabulary = {word: number for number, word in enumerate(words)}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=list(MERGES)))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<s>",
        eos_token=END,
        additional_special_tokens=list(SPECIAL[2:]),
        chat_template=chat_template,
    )
    return TokenizerWrapper(fast)


TOKENIZER = make_tokenizer()


def ids(text: str) -> list[int]:
    return list(TOKENIZER.encode(text, add_special_tokens=False))


@dataclass
class Script:
    """What the engine does with one request: tokens, then an end token, an error, or silence."""

    tokens: Sequence[int] = ()
    end: bool = True  # an end token follows, unless max_tokens came first
    error: Exception | None = None  # raised after the tokens
    hang: bool = False  # after the tokens, wait to be cancelled
    logprobs: TokenLogprobs | None = None
    cached: int = 0


@dataclass
class FakeEngine:
    """Plays one script for each request: by prompt length if there is one, else the default."""

    script: Script = field(default_factory=Script)
    scripts: dict[int, Script] = field(default_factory=dict)
    requests: list[GenerationRequest] = field(default_factory=list)
    cancelled: list[str] = field(default_factory=list)
    ended: list[str] = field(default_factory=list)
    running: int = 0
    most_running: int = 0
    # Kept, so that no stream is closed by the garbage collector where the code should have done it.
    _streams: list[AsyncGenerator[TokenEvent, None]] = field(default_factory=list)

    def generate(self, request: GenerationRequest) -> AsyncGenerator[TokenEvent, None]:
        stream = self._generate(request)
        self._streams.append(stream)
        return stream

    async def _generate(self, request: GenerationRequest) -> AsyncGenerator[TokenEvent, None]:
        self.requests.append(request)
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        done = False
        try:
            async for event in self._play(request):
                done = event.finish is not None
                yield event
        except asyncio.CancelledError:
            self.cancelled.append(request.id)
            raise
        except GeneratorExit:
            if not done:
                self.cancelled.append(request.id)
            raise
        finally:
            self.running -= 1
            self.ended.append(request.id)

    async def _play(self, request: GenerationRequest) -> AsyncGenerator[TokenEvent, None]:
        script = self.scripts.get(len(request.prompt), self.script)
        chosen = script.logprobs if request.params.logprobs >= 0 else None
        await asyncio.sleep(0)
        for count, token in enumerate(script.tokens, start=1):
            last = count == request.max_tokens
            yield TokenEvent(
                token, "length" if last else None, chosen, script.cached if count == 1 else 0
            )
            await asyncio.sleep(0)
            if last:
                return
        if script.error is not None:
            raise script.error
        if script.hang:
            await asyncio.Event().wait()
        if script.end:
            yield TokenEvent(TOKENIZER.eos_token_id, "stop", chosen)


def make_service(engine: FakeEngine, **settings: Any) -> Service:
    model = ServedModel(
        id="tiny",
        aliases=("default", "org/tiny"),
        tokenizer=settings.pop("tokenizer", TOKENIZER),
        max_model_len=settings.pop("max_model_len", 200),
        created=1_700_000_000,
        end_tokens=(TOKENIZER.eos_token_id,),
        vocab_size=len(TOKENIZER.get_vocab()),
    )
    return Service(readiness=lambda: None, model=model, generator=engine, **settings)
