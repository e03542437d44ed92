"""Model folders small enough to make in a test, in the layout that their publishers use."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

Tensors = dict[str, mx.array]

LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "intermediate_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5,
    "vocab_size": 97,
    "tie_word_embeddings": True,
    "max_position_embeddings": 512,
    "eos_token_id": 2,
}
QWEN3_MOE: dict[str, Any] = LLAMA | {
    "model_type": "qwen3_moe",
    "head_dim": 8,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "norm_topk_prob": True,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
}


def make_model(config: dict[str, Any]) -> Any:
    """A model with random weights (no zeros or ones, which would hide mistakes)."""
    module = importlib.import_module(f"mlx_lm.models.{config['model_type']}")
    model = module.Model(module.ModelArgs.from_dict(config))
    key = mx.random.key(7)
    weights = []
    for name, array in tree_flatten(model.parameters()):
        key, own = mx.random.split(key)
        weights.append((name, 0.1 * mx.random.normal(array.shape, key=own)))
    model.load_weights(weights)
    mx.eval(model.parameters())
    return model


def quantized(model: Any, config: dict[str, Any]) -> dict[str, Any]:
    """Quantize `model` in place, 4 bits, but 8 for the first MLP; returns the config to save with it."""
    own = {"group_size": 32, "bits": 8}
    special = "model.layers.0.mlp.down_proj"
    nn.quantize(
        model,
        32,
        4,
        class_predicate=lambda p, m: hasattr(m, "to_quantized") and (own if p == special else True),
    )
    return config | {"quantization": {"group_size": 32, "bits": 4, special: own}}


def published(model: Any) -> Tensors:
    """Tensors of `model` as publishers lay them out: one tensor for each expert."""
    tensors: Tensors = {}
    for name, array in tree_flatten(model.parameters()):
        if ".switch_mlp." in name:
            for expert in range(array.shape[0]):
                tensors[name.replace("switch_mlp", f"experts.{expert}")] = array[expert]
        else:
            tensors[name] = array
    return tensors


def file_by_layer(name: str) -> str:
    """A file for each layer, one for the embedding, one for norm and head."""
    if ".layers." in name:
        part = "layer" + name.split(".layers.")[1].split(".")[0]
    else:
        part = "first" if "embed" in name else "last"
    return f"model-{part}.safetensors"


def write_folder(
    folder: Path,
    config: dict[str, Any],
    tensors: Tensors,
    file_of: Callable[[str], str] = file_by_layer,
) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    files: dict[str, Tensors] = {}
    for name, array in tensors.items():
        files.setdefault(file_of(name), {})[name] = array
    for file, part in files.items():
        mx.save_safetensors(str(folder / file), part, metadata={"format": "mlx"})
    weight_map = {name: file_of(name) for name in tensors}
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def make_folder(folder: Path, config: dict[str, Any]) -> Path:
    return write_folder(folder, config, published(make_model(config)))
