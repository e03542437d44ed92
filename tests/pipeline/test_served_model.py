from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from config import load
from pipeline import demo_model
from pipeline.errors import ModelNotFound, UnsupportedModel
from pipeline.served_model import open_ahead, open_checkpoint
from tests.pipeline.test_checkpoint_code import with_code
from tests.pipeline.tiny_models import LLAMA, make_folder


def silent(what: str, done: int, total: int) -> None:
    pass


def test_a_folder(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "tiny", LLAMA)
    config = load(None, {}, short={"model": str(folder)}).config
    assert open_checkpoint(config, silent).path == folder


def test_the_demo_model_is_the_one_in_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLXC_CACHE_DIR", str(tmp_path))
    folder = make_folder(demo_model.demo_model_path(), LLAMA)
    assert open_checkpoint(load(None, {}, short={"model": "demo"}).config, silent).path == folder


def test_the_demo_model_is_made_and_its_progress_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLXC_CACHE_DIR", str(tmp_path))

    def make(folder: Path, variant: demo_model.Variant, progress: demo_model.Progress) -> None:
        progress("demo model: making it")
        make_folder(folder, LLAMA)

    monkeypatch.setattr(demo_model, "_make", make)
    lines: list[tuple[str, int, int]] = []
    config = load(None, {}, short={"model": "demo"}).config
    open_checkpoint(config, lambda *line: lines.append(line))
    assert lines[0] == ("demo model: making it", 0, 1)


def test_trust_is_the_configurations_to_give(tmp_path: Path) -> None:
    folder = with_code(tmp_path / "own", "from mlx_lm.models.llama import Model, ModelArgs")
    models = f"models={{own: {{source: {folder}, trust_remote_code: %s}}}}"
    refused = load(None, {}, [models % "false"], {"model": "own"}).config
    with pytest.raises(UnsupportedModel, match="set trust_remote_code"):
        open_checkpoint(refused, silent)
    trusted = load(None, {}, [models % "true"], {"model": "own"}).config
    assert open_checkpoint(trusted, silent).num_layers == 4


def test_a_missing_folder(tmp_path: Path) -> None:
    config = load(None, {}, short={"model": str(tmp_path / "none")}).config
    with pytest.raises(ModelNotFound):
        open_checkpoint(config, silent)


def test_what_was_opened_ahead_serves_in_another_thread(tmp_path: Path) -> None:
    """MLX works in the thread of the engine, which begins later."""
    folder = make_folder(tmp_path / "tiny", LLAMA)
    config = load(None, {}, short={"model": str(folder)}).config
    ahead = open_ahead(config)
    with ThreadPoolExecutor(1) as engine:
        checkpoint = engine.submit(open_checkpoint, config, silent).result()
        assert checkpoint is ahead
        stage = engine.submit(checkpoint.load_stage, 0, checkpoint.num_layers).result()
    assert len(stage.model.layers) == checkpoint.num_layers
    assert open_checkpoint(config, silent) is not ahead


def test_what_was_opened_ahead_is_not_used_for_files_that_have_changed(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "tiny", LLAMA)
    config = load(None, {}, short={"model": str(folder)}).config
    ahead = open_ahead(config)
    (folder / "generation_config.json").write_text('{"eos_token_id": 3}')
    assert open_checkpoint(config, silent) is not ahead
