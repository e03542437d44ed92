"""scripts/random_model.py: what it writes is a model that ranks can load."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx
import pytest

import random_model
from pipeline.checkpoint import Checkpoint


@pytest.fixture
def tokenizer(tmp_path: Path) -> Path:
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    for name in random_model.TOKENIZER:
        (folder / name).write_text("{}")
    return folder


@pytest.mark.parametrize("more", [[], ["--bits", "4"]])
def test_it_can_be_served(
    tmp_path: Path, tokenizer: Path, monkeypatch: pytest.MonkeyPatch, more: list[str]
) -> None:
    numbers = {"layers": 3, "hidden": 128, "intermediate": 256, "vocab": 300, "context": 64}
    sizes = [word for name, size in numbers.items() for word in (f"--{name}", str(size))]
    folder = tmp_path / "model"
    arguments = [str(folder), *sizes, "--tokenizer", str(tokenizer), *more]
    monkeypatch.setattr("sys.argv", ["random_model.py", *arguments])
    assert random_model.main() == 0
    checkpoint = Checkpoint.open(folder)
    assert (checkpoint.num_layers, checkpoint.max_model_len, checkpoint.vocab_size) == (3, 64, 300)
    stage = checkpoint.load_stage(0, 3)
    logits = stage(mx.array([[1, 2]]), stage.make_cache())
    assert isinstance(logits, mx.array)
    assert logits.shape == (1, 2, 300)
    assert mx.isfinite(logits).all().item()
    assert (folder / "tokenizer.json").read_text() == "{}"
