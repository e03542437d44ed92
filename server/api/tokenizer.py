"""The tokenizer of a model folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import structlog
from jinja2 import TemplateSyntaxError
from mlx_lm.tokenizer_utils import TokenizerWrapper
from mlx_lm.utils import load_tokenizer as read_tokenizer

from pipeline.ahead import Ahead, state_of
from pipeline.errors import CheckpointError
from server.api.harmony import TURN_ENDS, is_harmony
from server.api.templates import MAX_REASON_CHARS, TEMPLATE_FAILURES
from server.templating.bound import bind_template

log = structlog.get_logger(__name__)


def load_tokenizer(
    folder: Path, config: Mapping[str, Any], trust_remote_code: bool
) -> TokenizerWrapper:
    """mlx-lm's tokenizer for the files in `folder`, with the end tokens that `config` names.

    Raises CheckpointError when the files are missing, broken, or need code that is not trusted, and when the
    chat template is no template.
    """
    key = _key(folder, config, trust_remote_code)
    tokenizer = _ahead.take(key) or _read(folder, config, trust_remote_code)
    if is_harmony(tokenizer):
        for token in TURN_ENDS:  # whatever the folder's files say
            tokenizer.add_eos_token(token)
    bind_template(tokenizer)
    _try_template(tokenizer, folder)
    return tokenizer


_ahead: Ahead[TokenizerWrapper] = Ahead()


def read_ahead(folder: Path, config: Mapping[str, Any], trust_remote_code: bool) -> None:
    """Have `load_tokenizer` use what is read now.  Raises CheckpointError."""
    state = state_of(folder)
    tokenizer = _read(folder, config, trust_remote_code)
    _ahead.keep(_key(folder, config, trust_remote_code), folder, state, tokenizer)


def _key(folder: Path, config: Mapping[str, Any], trusted: bool) -> tuple[Path, str, bool]:
    return folder, str(config.get("eos_token_id")), trusted


def _read(folder: Path, config: Mapping[str, Any], trusted: bool) -> TokenizerWrapper:
    try:
        return read_tokenizer(
            folder,
            {"trust_remote_code": trusted},
            eos_token_ids=config.get("eos_token_id"),
        )
    except Exception as error:  # the tokenizers library raises the base class itself
        reason = " ".join(str(error).split())
        raise CheckpointError(f"{folder}: the tokenizer can't be loaded: {reason}") from error


def _try_template(tokenizer: TokenizerWrapper, folder: Path) -> None:
    """Render the shortest conversation: transformers compiles a template only then."""
    if not tokenizer.has_chat_template:
        return
    if not isinstance(
        tokenizer.chat_template, (str, dict, type(None))
    ):  # None: mlx-lm has one of its own
        raise CheckpointError(f"{folder}: the chat template is not a text")
    hello = [{"role": "user", "content": "Hello"}]
    try:
        tokenizer.apply_chat_template(hello, tokenize=False, add_generation_prompt=True)
    except TemplateSyntaxError as error:
        reason = f"{' '.join(str(error.message).split())} (line {error.lineno})"
        raise CheckpointError(f"{folder}: the chat template is broken: {reason}") from error
    except TEMPLATE_FAILURES as error:
        # It may still serve what it was made for, such as messages in parts, and completions need none.
        log.warning(
            "the chat template refuses a plain message", reason=str(error)[:MAX_REASON_CHARS]
        )
