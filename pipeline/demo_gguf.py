"""Turns the llama GGUF of the demo model into the files of an MLX model folder.

Only what that file holds is handled: the llama architecture, a byte-level BPE vocabulary, and
tensors that `mx.load` returns either plain or as affine-quantized groups of 32.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import mlx.core as mx
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from pipeline.errors import CheckpointError

GROUP_SIZE = 32
SPECIAL_TOKEN = 3  # a "control" token in tokenizer.ggml.token_type

TENSORS = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}

Arrays = dict[str, mx.array]


@dataclass(frozen=True)
class Gguf:
    """One loaded file: tensors by GGUF name, and the metadata with scalars as Python values."""

    arrays: Arrays
    metadata: Mapping[str, Any]

    @classmethod
    def load(cls, path: Path) -> Gguf:
        """Read `path`; raises CheckpointError unless it is a llama file with a BPE vocabulary."""
        try:
            loaded = mx.load(str(path), return_metadata=True)
        except RuntimeError as error:
            raise CheckpointError(f"{path.name} is not a readable GGUF file: {error}") from error
        arrays, raw = cast("tuple[Arrays, dict[str, Any]]", loaded)
        metadata = {
            key: value.item() if isinstance(value, mx.array) and value.ndim == 0 else value
            for key, value in raw.items()
        }
        for key, wanted in (("general.architecture", "llama"), ("tokenizer.ggml.model", "gpt2")):
            if metadata.get(key) != wanted:
                raise CheckpointError(
                    f"{path.name}: {key} is {metadata.get(key)!r}, not {wanted!r}"
                )
        return cls(arrays, metadata)

    @property
    def tokens(self) -> list[str]:
        return list(self.metadata["tokenizer.ggml.tokens"])

    def llama(self, key: str) -> Any:
        return self.metadata[f"llama.{key}"]


def weights(gguf: Gguf, *, quantized: bool) -> Iterator[tuple[str, mx.array]]:
    """The tensors under mlx-lm's names, in layer order.

    Float32 throughout; or, when `quantized`, the file's own 4-bit and 8-bit groups as they are,
    with scales, biases and norms in float16.
    """
    heads = {
        "attn_q": gguf.llama("attention.head_count"),
        "attn_k": gguf.llama("attention.head_count_kv"),
    }
    for stem in _stems(gguf):
        block, _, kind = stem.rpartition(".")
        prefix = f"model.layers.{block.removeprefix('blk.')}." if block else ""
        parts = _parts(gguf.arrays, stem)
        if kind in heads:
            parts = {part: split_halves(array, heads[kind]) for part, array in parts.items()}
        for part, array in _cast(parts, quantized).items():
            yield f"{prefix}{TENSORS[kind]}.{part}", array


def _stems(gguf: Gguf) -> list[str]:
    stems = {name.removesuffix(".weight") for name in gguf.arrays if name.endswith(".weight")}
    unknown = sorted(stem for stem in stems if stem.rpartition(".")[2] not in TENSORS)
    if unknown:
        raise CheckpointError(f"the GGUF file holds an unknown tensor {unknown[0]!r}")
    order = {"token_embd": -1, "output_norm": gguf.llama("block_count")}
    return sorted(stems, key=lambda stem: (order.get(stem) or int(stem.split(".")[1]), stem))


def _parts(arrays: Arrays, stem: str) -> Arrays:
    names = ("weight", "scales", "biases")
    return {part: arrays[f"{stem}.{part}"] for part in names if f"{stem}.{part}" in arrays}


def split_halves(rows: mx.array, heads: int) -> mx.array:
    """Undo the row order of interleaved rope: per head, [even, odd, ...] back to [evens, odds].

    Quantization groups run along a row, so rows of packed weights, scales and biases move alike.
    """
    per_head = rows.reshape(heads, -1, 2, rows.shape[-1])
    return per_head.swapaxes(1, 2).reshape(rows.shape)


def _bits(parts: Arrays) -> int:
    """Bits per weight: 32 times packed words per row over weights per row."""
    return 32 * parts["weight"].shape[-1] // (parts["scales"].shape[-1] * GROUP_SIZE)


def _cast(parts: Arrays, quantized: bool) -> Arrays:
    if quantized:
        return {
            part: array if array.dtype == mx.uint32 else array.astype(mx.float16)
            for part, array in parts.items()
        }
    if "scales" not in parts:
        return {"weight": parts["weight"].astype(mx.float32)}
    scales, biases = (parts[part].astype(mx.float32) for part in ("scales", "biases"))
    dense = mx.dequantize(parts["weight"], scales, biases, group_size=GROUP_SIZE, bits=_bits(parts))
    return {"weight": dense}


def model_config(gguf: Gguf, *, quantized: bool) -> dict[str, Any]:
    """The content of config.json."""
    metadata = gguf.metadata
    config: dict[str, Any] = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": gguf.llama("embedding_length"),
        "intermediate_size": gguf.llama("feed_forward_length"),
        "num_hidden_layers": gguf.llama("block_count"),
        "num_attention_heads": gguf.llama("attention.head_count"),
        "num_key_value_heads": gguf.llama("attention.head_count_kv"),
        "max_position_embeddings": gguf.llama("context_length"),
        "rms_norm_eps": float(f"{gguf.llama('attention.layer_norm_rms_epsilon'):.6g}"),
        "rope_theta": gguf.llama("rope.freq_base"),
        "vocab_size": gguf.llama("vocab_size"),
        "tie_word_embeddings": True,
        "torch_dtype": "float16" if quantized else "float32",
        "bos_token_id": metadata["tokenizer.ggml.bos_token_id"],
        "eos_token_id": metadata["tokenizer.ggml.eos_token_id"],
        "pad_token_id": metadata["tokenizer.ggml.padding_token_id"],
    }
    if quantized:
        config["quantization"] = _quantization(gguf)
    return config


def _quantization(gguf: Gguf) -> dict[str, Any]:
    """mlx-lm's quantization entry: 4 bits, and by name whatever the file keeps wider."""
    embedding = _bits(_parts(gguf.arrays, "token_embd"))
    entry: dict[str, Any] = {"group_size": GROUP_SIZE, "bits": 4, "mode": "affine"}
    entry[TENSORS["token_embd"]] = {"group_size": GROUP_SIZE, "bits": embedding}
    return entry


def tokenizer(gguf: Gguf) -> PreTrainedTokenizerFast:
    """Byte-level BPE that cuts numbers into single digits, with the file's chat template."""
    metadata, tokens = gguf.metadata, gguf.tokens
    merges = [tuple(merge.split(" ", 1)) for merge in metadata["tokenizer.ggml.merges"]]
    core = Tokenizer(models.BPE({token: index for index, token in enumerate(tokens)}, merges))
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    core.decoder = decoders.ByteLevel()
    kinds = metadata["tokenizer.ggml.token_type"].tolist()
    core.add_special_tokens(
        [
            AddedToken(token, special=True, normalized=False)
            for token, kind in zip(tokens, kinds, strict=True)
            if kind == SPECIAL_TOKEN
        ]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        chat_template=metadata["tokenizer.chat_template"],
        model_max_length=gguf.llama("context_length"),
        clean_up_tokenization_spaces=False,
        bos_token=tokens[metadata["tokenizer.ggml.bos_token_id"]],
        eos_token=tokens[metadata["tokenizer.ggml.eos_token_id"]],
        pad_token=tokens[metadata["tokenizer.ggml.padding_token_id"]],
        unk_token=tokens[metadata["tokenizer.ggml.unknown_token_id"]],
    )


def as_qwen2(config: dict[str, Any], arrays: Arrays) -> None:
    """Make the same model a qwen2 one, in place: that architecture adds q/k/v biases, here zero."""
    config.update(architectures=["Qwen2ForCausalLM"], model_type="qwen2")
    dtype = arrays["model.norm.weight"].dtype
    projections = tuple(f".{projection}.weight" for projection in ("q_proj", "k_proj", "v_proj"))
    for name in [name for name in arrays if name.endswith(projections)]:
        arrays[name.removesuffix("weight") + "bias"] = mx.zeros(arrays[name].shape[0], dtype=dtype)


def write_folder(
    folder: Path,
    config: Mapping[str, Any],
    arrays: Arrays,
    vocabulary: PreTrainedTokenizerFast,
    *,
    files: int = 1,
) -> None:
    """Write a complete model folder, the weights in order of `arrays` over `files` files."""
    names = list(arrays)
    chunk = -(-len(names) // files)
    groups = [names[start : start + chunk] for start in range(0, len(names), chunk)]
    weight_map = {}
    for number, group in enumerate(groups, 1):
        file = "model.safetensors"
        if len(groups) > 1:
            file = f"model-{number:05d}-of-{len(groups):05d}.safetensors"
        part = {name: arrays[name] for name in group}
        mx.save_safetensors(str(folder / file), part, metadata={"format": "mlx"})
        weight_map.update(dict.fromkeys(group, file))
    total = sum(array.nbytes for array in arrays.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    _write_json(folder / "model.safetensors.index.json", index)
    _write_json(folder / "config.json", config)
    ids = {key: config[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    _write_json(folder / "generation_config.json", ids)
    vocabulary.save_pretrained(folder)


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
