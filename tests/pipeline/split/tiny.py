"""Tiny models of every architecture, with random weights, whole and in stages."""

from __future__ import annotations

import copy
import importlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx_lm.models
from mlx.utils import tree_flatten
from mlx_lm.models.cache import make_prompt_cache

from pipeline.split import Blueprint, Message, Stage, flatten, probe, unflatten

MODELS = Path(mlx_lm.models.__path__[0])
CONFIGS: dict[str, dict[str, Any]] = {
    name: config
    for name, config in json.loads(
        Path(__file__).with_name("tiny_configs.json").read_text()
    ).items()
    if (MODELS / f"{name}.py").exists()  # older releases of mlx-lm know fewer architectures
}

TIE_KEYS = ("tie_word_embeddings", "weight_tying")
TIES_WITHOUT_HEAD = ("gemma3", "gemma3_text", "recurrent_gemma")  # sanitize() sees no head: tied
_CANNOT_BATCH = {
    "afm7": "layers that reuse K/V take the padding for positions",
    "deepseek_v41": "its LayerCache has no merge",
    "gemma2": "adds a mask [B, 1, L, S] to scores [B, H, G, L, S]",
    "gpt_bigcode": "takes the offset as one int",
    "llama4": "ChunkedKVCache has no merge",
    "longcat_flash_ngram": "a prompt shorter than the n-gram context can't be extended by another",
    "minimax_m3_vl": "selects blocks of keys by their place in the padded batch",
    "nemotron-nas": "layers without attention leave their caches empty",
    "phi3small": "adds a mask [B, 1, L, S] to scores [B, H, G, L, S]",
}

CANNOT_BATCH = {name: why for name, why in _CANNOT_BATCH.items() if name in CONFIGS}

TOKENS = mx.array([[5, 17, 3, 44, 9, 61, 2, 30, 8, 77, 21, 13]])
STEPS = (
    5,
    4,
    1,
    1,
    1,
)  # two prefill chunks, the first longer than the sliding windows (4), and decode


def tie_flipped(config: dict[str, Any]) -> dict[str, Any] | None:
    """The config with the other setting of a tied head, None if it has no such setting."""
    config = copy.deepcopy(config)
    for part in (config, config.get("text_config", {})):
        for key in TIE_KEYS:
            if key in part:
                part[key] = not part[key]
                return config
    return None


@dataclass(frozen=True)
class Variant:
    """A way to build a model of one architecture."""

    architecture: str
    quantized: bool = False
    flip_tie: bool = False
    drop_head: bool = False  # what sanitize() does when the checkpoint has no head

    def build(self) -> nn.Module:
        """The model as a loader has it before it loads weights: lazy arrays, quantized modules."""
        module = importlib.import_module(f"mlx_lm.models.{self.architecture}")
        given = CONFIGS[self.architecture]
        config = tie_flipped(given) if self.flip_tie else copy.deepcopy(given)
        model = module.Model(module.ModelArgs.from_dict(config))
        if self.drop_head:
            parameters = dict(tree_flatten(model.parameters()))
            model.sanitize({k: v for k, v in parameters.items() if "lm_head" not in k})
        if self.quantized:
            _quantize(model)
        model.eval()
        return model


def _quantize(model: nn.Module) -> None:
    predicate = getattr(model, "quant_predicate", None) or (lambda path, module: True)
    nn.quantize(
        model,
        group_size=32,
        bits=4,
        class_predicate=lambda path, module: (
            hasattr(module, "to_quantized")
            and type(module).__name__ != "FusedLinear"  # mlx-lm quantizes its parts before fusing
            and module.weight.shape[-1] % 32 == 0
            and bool(predicate(path, module))
        ),
    )


def random_weights(model: nn.Module, seed: int = 0) -> dict[str, mx.array]:
    """Values for every parameter: what zeros and ones of an initialisation would hide shows up."""
    key, weights = mx.random.key(seed), {}
    for name, like in tree_flatten(model.parameters()):
        key, own = mx.random.split(key)
        if like.dtype in (mx.uint8, mx.uint32):
            high = 256 if like.dtype == mx.uint8 else 2**31 - 1
            weights[name] = mx.random.randint(0, high, like.shape, key=own).astype(like.dtype)
        else:
            scale = 0.003 if name.endswith((".scales", ".biases")) else 0.1
            noise = scale * mx.random.normal(like.shape, key=own)
            wanted = mx.float16 if like.dtype == mx.float16 else mx.float32
            weights[name] = (like.astype(mx.float32) + noise).astype(wanted)
    mx.eval(list(weights.values()))
    return weights


@dataclass(frozen=True)
class Tiny:
    """One variant with weights: the blueprint, the whole model, and pipelines of it."""

    variant: Variant
    weights: dict[str, mx.array]
    blueprint: Blueprint

    @classmethod
    def make(cls, variant: Variant) -> Tiny:
        return cls(variant, random_weights(variant.build()), probe(variant.build()))

    def whole(self) -> nn.Module:
        model = self.variant.build()
        model.load_weights(list(self.weights.items()))
        return model

    def stage(self, start: int, end: int) -> Stage:
        stage = Stage(self.variant.build(), self.blueprint, start, end)
        names = stage.parameter_names()
        stage.model.load_weights([(name, self.weights[name]) for name in names], strict=True)
        return stage

    def pipeline(self, bounds: Sequence[int]) -> Pipeline:
        return Pipeline([self.stage(*pair) for pair in pairwise(bounds)])


class Pipeline:
    """Stages one after the other in one process, joined by flattened messages; called like a model."""

    def __init__(self, stages: list[Stage]) -> None:
        self.stages = stages

    @property
    def bounds(self) -> list[int]:
        """The layers at which stages begin, and the number of layers."""
        return [stage.start for stage in self.stages] + [self.stages[-1].end]

    def make_cache(self) -> list[list[Any]]:
        """One list per stage."""
        return [stage.make_cache() for stage in self.stages]

    def __call__(self, tokens: mx.array, cache: list[list[Any]]) -> mx.array:
        passed: Message | mx.array = tokens
        for pass_index in range(self.stages[0].blueprint.passes):
            for stage, own in zip(self.stages, cache, strict=True):
                passed = stage(passed, own, pass_index)
                if isinstance(passed, Message):
                    specs, arrays = flatten(passed)
                    assert all(array.size for array in arrays), "an empty tensor can't be sent"
                    mx.eval(arrays)
                    passed = unflatten(passed.tokens, specs, arrays)
        assert isinstance(passed, mx.array)
        return passed


def run(model: nn.Module | Pipeline, tokens: mx.array = TOKENS) -> mx.array:
    """Logits float32 [B, sum(STEPS), V] of a fresh sequence in STEPS."""
    cache = model.make_cache() if isinstance(model, Pipeline) else make_prompt_cache(model)
    outputs, start = [], 0
    for length in STEPS:
        logits = model(tokens[:, start : start + length], cache=cache)
        mx.eval(logits)
        outputs.append(logits.astype(mx.float32))
        start += length
    return mx.concatenate(outputs, axis=1)
