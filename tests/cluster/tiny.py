"""Model folders with random float32 weights and a tokenizer of one word for each token."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tests.pipeline.split.tiny import CONFIGS, Variant, random_weights
from tests.pipeline.tiny_models import write_folder

FAMILIES: dict[str, int | tuple[int, ...]] = {
    "llama": 2,
    "qwen2": 3,
    "qwen3_moe": 3,
    "gemma3_text": 2,
    "gpt_oss": 3,
    "mamba2": 2,
    "gemma3n": 2,  # many tensors between stages
    "gemma4_text": 3,  # keys and values of earlier layers between stages
    "nanbeige": 2,  # goes round twice
    "nemotron_h": (7, 1),  # a last stage without any cache
}
"""Architectures, and over how many ranks; or how many layers for each rank."""

COMPLETED = {"mamba2": {"time_step_limit": [0.01, 10.0], "expand": 1}}
"""What transformers, which reads config.json for the tokenizer, checks beyond what mlx-lm needs."""


def make_folder(folder: Path, architecture: str) -> Path:
    """A model of tests/pipeline/split as publishers have it: config, weights by layer, tokenizer."""
    config: dict[str, Any] = CONFIGS[architecture] | COMPLETED.get(architecture, {})
    config["max_position_embeddings"] = 1024
    weights = random_weights(Variant(architecture).build())
    write_folder(folder, config, weights)
    vocab_size = config.get("text_config", config)["vocab_size"]
    tokenizer(vocab_size).save_pretrained(folder)
    return folder


def word(token: int) -> str:
    """The text of a token."""
    return f"w{token}"


def tokenizer(size: int) -> PreTrainedTokenizerFast:
    """Token n is the word wn; the last one ends a text."""
    vocabulary = {word(token): token for token in range(size)}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token=word(0)))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token=word(0), eos_token=word(size - 1)
    )
