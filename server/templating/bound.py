"""A tokenizer whose own chat template runs bounded; everything else of it stays as it is."""

from __future__ import annotations

import weakref
from typing import Any

from mlx_lm.tokenizer_utils import TokenizerWrapper
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from server.templating.renderer import RenderLimits, TemplateRenderer


def bind_template(tokenizer: TokenizerWrapper, limits: RenderLimits | None = None) -> None:
    """Let `apply_chat_template` of this tokenizer render in a process of its own.

    mlx-lm's wrapper calls that of the Hugging Face tokenizer inside of it, so it is set on that one object.  A
    template that is a part of mlx-lm or transformers, and not of the model, is left alone: it is no data.
    """
    inner = tokenizer._tokenizer
    template = inner.chat_template
    own = type(inner).apply_chat_template is PreTrainedTokenizerBase.apply_chat_template
    if not own or not isinstance(template, (str, dict)):
        return
    renderer = TemplateRenderer(template, dict(inner.special_tokens_map), limits or RenderLimits())
    weakref.finalize(tokenizer, renderer.close)

    def apply(
        conversation: list[Any], *, tokenize: bool = True, return_dict: bool = False, **options: Any
    ) -> str | list[int]:
        assert not return_dict, "mlx-lm's wrapper asks for token ids"
        text = renderer.render(conversation, **options)
        if not tokenize:
            return text
        ids: list[int] = inner.encode(text, add_special_tokens=False)
        return ids

    inner.apply_chat_template = apply


def renders_text(tokenizer: TokenizerWrapper) -> bool:
    """Whether `apply_chat_template` makes a text, and of that tokens as `encode` does without special ones."""
    inner = tokenizer._tokenizer
    return (
        getattr(tokenizer, "_chat_template", None) is not None
        or "apply_chat_template" in vars(inner)  # bound here
        or type(inner).apply_chat_template is PreTrainedTokenizerBase.apply_chat_template
    )
