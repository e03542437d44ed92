"""Models that are code: which architectures can be imported, and files that come with the weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from mlx_lm import models

from pipeline.checkpoint import Checkpoint
from pipeline.errors import CheckpointError, UnsupportedModel
from tests.pipeline.tiny_models import LLAMA, make_folder

CUSTOM = """
import mlx.core as mx
from mlx_lm.models import llama
from mlx_lm.models.llama import ModelArgs


class Model(llama.Model):
    def sanitize(self, weights):
        if {looks_while_loading} and mx.any(mx.isnan(weights["model.norm.weight"])).item():
            raise ValueError("NaN in the norm")
        return weights

    def __call__(self, tokens, cache=None):
        if {looks_while_running}:
            self.model.norm.weight.tolist()
        return super().__call__(tokens, cache)
"""


def trust_custom(folder: Path, loading: bool, running: bool) -> Checkpoint:
    make_folder(folder, LLAMA)
    (folder / "config.json").write_text(json.dumps(LLAMA | {"model_file": "own.py"}))
    code = CUSTOM.format(looks_while_loading=loading, looks_while_running=running)
    (folder / "own.py").write_text(code)
    return Checkpoint.open(folder, trust_remote_code=True)


def test_an_architecture_that_looks_at_weights_while_loading_gets_all_files(tmp_path: Path) -> None:
    checkpoint = trust_custom(tmp_path, loading=True, running=False)
    assert len(checkpoint.files(1, 2)) == 6
    assert len(checkpoint.load_stage(1, 2).parameter_names()) == 9


def test_an_architecture_that_looks_at_weights_while_running_can_be_measured(
    tmp_path: Path,
) -> None:
    checkpoint = trust_custom(tmp_path, loading=False, running=True)
    assert checkpoint.num_layers == 4
    # Its code reads the norm before the layers, which happens on every stage.
    assert checkpoint.files(1, 2) == {"model-layer1.safetensors", "model-last.safetensors"}


def test_code_that_comes_with_a_model_runs_only_if_trusted(tmp_path: Path) -> None:
    make_folder(tmp_path, LLAMA)
    (tmp_path / "config.json").write_text(json.dumps(LLAMA | {"model_file": "own.py"}))
    (tmp_path / "own.py").write_text("from mlx_lm.models.llama import Model, ModelArgs")
    with pytest.raises(UnsupportedModel, match=r"its own code \(own\.py\); set trust_remote_code"):
        Checkpoint.open(tmp_path)
    trusted = Checkpoint.open(tmp_path, trust_remote_code=True)
    assert len(trusted.load_stage(1, 2).parameter_names()) == 9
    (tmp_path / "own.py").unlink()
    with pytest.raises(CheckpointError, match=r"names own\.py, which is missing"):
        Checkpoint.open(tmp_path, trust_remote_code=True)


def with_code(folder: Path, code: str) -> Path:
    make_folder(folder, LLAMA)
    (folder / "config.json").write_text(json.dumps(LLAMA | {"model_file": "own.py"}))
    (folder / "own.py").write_text(code)
    return folder


@pytest.mark.parametrize(
    ("code", "says"),
    [
        ("import no_such_package", "ModuleNotFoundError: No module named 'no_such_package'"),
        ("import sys; sys.exit(1)", "SystemExit: 1"),
        ("class Model(", "SyntaxError: "),
        ("from mlx_lm.models.llama import Model", "has no attribute 'ModelArgs'"),
        ("1 / 0", "ZeroDivisionError: "),
        ("raise ValueError('not on Mondays')", "not on Mondays"),
    ],
)
def test_code_that_comes_with_a_model_and_fails(code: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModel, match=r"own\.py can't be used as a model") as refused:
        Checkpoint.open(with_code(tmp_path, code), trust_remote_code=True)
    assert says in str(refused.value)


@pytest.mark.parametrize(
    ("code", "says"),
    [
        ("import sys; sys.exit(1)", "needs a Python package that is not installed"),
        ("import no_such_package", "needs the Python package no_such_package, which is not"),
        ("import mlx_lm.models.no_such_model", "this version of mlx-lm does not support"),
    ],
)
def test_an_architecture_whose_import_fails(
    code: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As mlx-lm's olmo does where its package is missing."""
    folder = make_folder(tmp_path / "model", LLAMA)
    (folder / "config.json").write_text(json.dumps(LLAMA | {"model_type": "lacking"}))
    (tmp_path / "lacking.py").write_text(code)
    monkeypatch.setattr(models, "__path__", [*models.__path__, str(tmp_path)])
    with pytest.raises(UnsupportedModel, match=f"has model_type 'lacking', which {says}"):
        Checkpoint.open(folder)
