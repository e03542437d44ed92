"""The tokenizer of a model folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlx_lm.tokenizer_utils import TokenizerWrapper
from mlx_lm.utils import load_tokenizer as read_tokenizer

from pipeline.errors import CheckpointError


def load_tokenizer(
    folder: Path, config: Mapping[str, Any], trust_remote_code: bool
) -> TokenizerWrapper:
    """mlx-lm's tokenizer for the files in `folder`, with the end tokens that `config` names.

    Raises CheckpointError when the files are missing, broken, or need code that is not trusted.
    """
    try:
        return read_tokenizer(
            folder,
            {"trust_remote_code": trust_remote_code},
            eos_token_ids=config.get("eos_token_id"),
        )
    except Exception as error:  # the tokenizers library raises the base class itself
        reason = " ".join(str(error).split())
        raise CheckpointError(f"{folder}: the tokenizer can't be loaded: {reason}") from error
