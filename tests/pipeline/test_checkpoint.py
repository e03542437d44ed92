from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten
from mlx_lm.utils import load_model

from pipeline.checkpoint import Checkpoint
from pipeline.checkpoint.checkpoint import GROUP_BYTES
from pipeline.errors import CheckpointError, ModelNotFound, UnsupportedModel
from pipeline.split import Message, Stage
from tests.pipeline.tiny_models import (
    LLAMA,
    QWEN3_MOE,
    make_folder,
    make_model,
    published,
    quantized,
    write_folder,
)

TOKENS = mx.array([[5, 17, 3, 44, 9]], dtype=mx.int32)


def header_end(file: Path) -> int:
    with file.open("rb") as content:
        return 8 + int.from_bytes(content.read(8), "little")


def logits(stages: list[Stage]) -> mx.array:
    passed: mx.array | Message = TOKENS
    for stage in stages:
        passed = stage(passed, stage.make_cache())
    assert isinstance(passed, mx.array)
    return passed


def parameters(stage: Stage) -> dict[str, mx.array]:
    return dict(tree_flatten(stage.model.parameters()))


def make_quantized(folder: Path) -> Path:
    model = make_model(LLAMA)
    config = quantized(model, LLAMA)
    return write_folder(folder, config, published(model))


def make_single_file(folder: Path) -> Path:
    return write_folder(folder, LLAMA, published(make_model(LLAMA)), lambda _: "model.safetensors")


FOLDERS: dict[str, Callable[[Path], Path]] = {
    "tied": lambda folder: make_folder(folder, LLAMA),
    "untied": lambda folder: make_folder(folder, LLAMA | {"tie_word_embeddings": False}),
    "experts": lambda folder: make_folder(folder, QWEN3_MOE),
    "quantized": make_quantized,
    "one file": make_single_file,
}


@pytest.mark.parametrize("kind", FOLDERS)
def test_stages_hold_their_weights_and_answer_like_the_whole_model(
    kind: str, tmp_path: Path
) -> None:
    folder = FOLDERS[kind](tmp_path)
    whole, _ = load_model(folder)
    wanted = dict(tree_flatten(whole.parameters()))
    checkpoint = Checkpoint.open(folder)
    stages = [checkpoint.load_stage(start, end) for start, end in ((0, 1), (1, 3), (3, 4))]
    held: set[str] = set()
    for stage in stages:
        assert parameters(stage).keys() == stage.parameter_names()
        for name, array in parameters(stage).items():
            assert mx.array_equal(array, wanted[name]), name
        held |= stage.parameter_names()
    assert held == wanted.keys()
    assert mx.allclose(logits(stages), whole(TOKENS), atol=1e-5)


def test_a_stage_needs_only_the_files_of_its_own_tensors(tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(make_folder(tmp_path, QWEN3_MOE))
    assert checkpoint.files(0, 1) == {"model-first.safetensors", "model-layer0.safetensors"}
    assert checkpoint.files(1, 3) == {"model-layer1.safetensors", "model-layer2.safetensors"}
    assert checkpoint.files(3, 4) == {"model-layer3.safetensors", "model-last.safetensors"}


def test_a_tied_embedding_is_needed_at_both_ends(tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(make_folder(tmp_path, LLAMA))
    assert "model-first.safetensors" in checkpoint.files(0, 1)
    assert "model-first.safetensors" not in checkpoint.files(1, 3)
    assert "model-first.safetensors" in checkpoint.files(3, 4)


def test_experts_scattered_over_files_are_found(tmp_path: Path) -> None:
    """The parts of one stacked parameter lie in different files, each with parts of all layers."""

    def file_of(name: str) -> str:
        expert = name.split(".experts.")[1][0] if ".experts." in name else "none"
        return f"model-{expert}.safetensors"

    folder = write_folder(tmp_path, QWEN3_MOE, published(make_model(QWEN3_MOE)), file_of)
    checkpoint = Checkpoint.open(folder)
    assert checkpoint.files(2, 3) == {
        f"model-{e}.safetensors" for e in ("0", "1", "2", "3", "none")
    }
    assert len(parameters(checkpoint.load_stage(2, 3))) == len(
        checkpoint.blueprint().parameters(2, 3)
    )


def test_files_of_other_stages_are_not_read(tmp_path: Path) -> None:
    """They lose their data after the check of sizes, so that any read of them fails."""
    folder = make_folder(tmp_path, QWEN3_MOE)
    checkpoint = Checkpoint.open(folder)
    for file in folder.glob("*.safetensors"):
        if file.name not in ("model-layer1.safetensors", "model-layer2.safetensors"):
            os.truncate(file, header_end(file))
    checkpoint.load_stage(1, 3)
    with pytest.raises(CheckpointError, match=r"model-.* incomplete|can't be read"):
        checkpoint.load_stage(0, 1)


def test_the_weights_of_other_stages_take_no_memory(tmp_path: Path) -> None:
    """Layers of 3 MB: the peak stays near the bytes of the stage, far from the model's."""
    config = QWEN3_MOE | {"hidden_size": 128, "num_hidden_layers": 12, "moe_intermediate_size": 512}
    checkpoint = Checkpoint.open(make_folder(tmp_path, config))
    size = checkpoint.costs().layer_bytes[0]
    mx.clear_cache()
    mx.reset_peak_memory()
    before = mx.get_active_memory()
    stage = checkpoint.load_stage(4, 6)
    local = sum(array.nbytes for array in parameters(stage).values())
    assert local == 2 * size < GROUP_BYTES
    assert mx.get_active_memory() - before < 1.05 * local
    assert mx.get_peak_memory() - before < 3 * local


def test_costs_add_up_to_the_parameters(tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(make_folder(tmp_path, QWEN3_MOE))
    costs = checkpoint.costs()
    embedding = 97 * 32 * 4
    assert costs.num_layers == checkpoint.num_layers == 4
    assert costs.first_bytes == embedding
    assert costs.last_bytes == costs.last_work == embedding + 32 * 4
    assert costs.kv_bytes_per_token == (2 * 2 * 8 * 4,) * 4
    assert not costs.shared
    experts = 3 * 4 * 16 * 32 * 4
    assert costs.layer_work == (costs.layer_bytes[0] - experts / 2,) * 4  # 2 of 4 are active
    whole, _ = load_model(checkpoint.path)
    assert costs.total_bytes == sum(a.nbytes for _, a in tree_flatten(whole.parameters()))


def test_a_tied_embedding_costs_memory_at_both_ends_and_time_at_the_last(tmp_path: Path) -> None:
    costs = Checkpoint.open(make_folder(tmp_path, LLAMA)).costs()
    (tied,) = costs.shared
    assert (tied.first, tied.last, tied.size) == (True, True, 97 * 32 * 4)
    assert costs.last_work == tied.size + costs.last_bytes
    assert costs.first_bytes == 0


def test_progress_counts_the_bytes_of_the_stage(tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    checkpoint = Checkpoint.open(make_folder(tmp_path, LLAMA))
    checkpoint.load_stage(1, 3, lambda *step: seen.append(step))
    size = sum(checkpoint.costs().layer_bytes[1:3])
    assert seen[-1] == ("Loading layers 1-2", size, size)


def test_what_the_config_says(tmp_path: Path) -> None:
    folder = make_folder(tmp_path, LLAMA)
    checkpoint = Checkpoint.open(folder)
    assert checkpoint.max_model_len == 512
    assert checkpoint.eos_token_ids == (2,)
    (folder / "generation_config.json").write_text('{"eos_token_id": [3, 4]}')
    assert Checkpoint.open(folder).eos_token_ids == (3, 4)


def test_the_fingerprint_tells_models_apart(tmp_path: Path) -> None:
    one = Checkpoint.open(make_folder(tmp_path / "one", LLAMA)).fingerprint
    assert Checkpoint.open(make_folder(tmp_path / "copy", LLAMA)).fingerprint == one
    other = make_quantized(tmp_path / "quantized")
    assert Checkpoint.open(other).fingerprint != one
    theta = make_folder(tmp_path / "theta", LLAMA | {"rope_theta": 5e5})
    assert Checkpoint.open(theta).fingerprint != one


# ---- broken models


def test_a_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match=r"no model folder .*nothing"):
        Checkpoint.open(tmp_path / "nothing")


def test_a_folder_without_config(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"has no config\.json"):
        Checkpoint.open(tmp_path)


def test_a_folder_without_weights(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    with pytest.raises(CheckpointError, match="has no weights"):
        Checkpoint.open(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"model_type": ', r"config\.json is not valid JSON"),
        ("[1, 2]", r"config\.json does not hold a JSON object"),
        ("\xff\xfe", r"config\.json is not valid JSON"),
        ("{}", r"config\.json has no model_type"),
        ('{"model_type": 7}', r"config\.json has no model_type"),
    ],
)
def test_a_broken_config(text: str, message: str, tmp_path: Path) -> None:
    make_folder(tmp_path, LLAMA)
    (tmp_path / "config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(CheckpointError, match=message):
        Checkpoint.open(tmp_path)


def test_an_unknown_architecture(tmp_path: Path) -> None:
    make_folder(tmp_path, LLAMA)
    (tmp_path / "config.json").write_text(json.dumps(LLAMA | {"model_type": "abacus"}))
    with pytest.raises(UnsupportedModel, match="'abacus', which this version of mlx-lm does not"):
        Checkpoint.open(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_size": None}, "does not describe a model"),
        ({"num_hidden_layers": 5}, r"do not match its config\.json: Missing 9 parameters"),
        ({"num_hidden_layers": 3}, r"do not match its config\.json: Received 9 parameters"),
        ({"hidden_size": 64}, r"do not match its config\.json: Expected shape"),
        ({"num_hidden_layers": 0}, "has num_hidden_layers 0; a model needs at least one layer"),
        ({"text_config": {"n_layers": -1}}, "has n_layers -1; a model needs at least one layer"),
    ],
)
def test_a_config_of_another_model(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    make_folder(tmp_path, LLAMA)
    (tmp_path / "config.json").write_text(json.dumps(LLAMA | change))
    with pytest.raises(CheckpointError, match=message):
        Checkpoint.open(tmp_path).blueprint()


def test_an_index_that_names_a_missing_file(tmp_path: Path) -> None:
    make_folder(tmp_path, LLAMA)
    (tmp_path / "model-layer2.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"names model-layer2\.safetensors, which is missing"):
        Checkpoint.open(tmp_path)


@pytest.mark.parametrize("text", ["{", "[]", '{"weight_map": 3}'])
def test_a_broken_index(text: str, tmp_path: Path) -> None:
    make_folder(tmp_path, LLAMA)
    (tmp_path / "model.safetensors.index.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"index\.json is not a valid index"):
        Checkpoint.open(tmp_path)


def test_a_truncated_weight_file(tmp_path: Path) -> None:
    make_folder(tmp_path, LLAMA)
    file = tmp_path / "model-layer2.safetensors"
    os.truncate(file, file.stat().st_size - 1)
    with pytest.raises(CheckpointError, match=r"model-layer2\.safetensors is incomplete"):
        Checkpoint.open(tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x02",
        b"\xff" * 64,
        b"\x40" + bytes(7) + b"not json".ljust(64),
        b"\x0a" + bytes(7) + b'{"a": [1]}',
        b"\x02" + bytes(7) + b"[]",
    ],
)
def test_a_file_that_is_no_safetensors(content: bytes, tmp_path: Path) -> None:
    make_folder(tmp_path, LLAMA)
    (tmp_path / "model-layer2.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"model-layer2\.safetensors"):
        Checkpoint.open(tmp_path)
