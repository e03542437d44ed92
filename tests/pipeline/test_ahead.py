from __future__ import annotations

import os
from pathlib import Path

import pytest

from pipeline.ahead import Ahead, state_of


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text("{}")
    return tmp_path


def test_what_is_kept_is_handed_out_once(folder: Path) -> None:
    ahead: Ahead[str] = Ahead()
    ahead.keep("key", folder, state_of(folder), "value")
    assert ahead.take("key") == "value"
    assert ahead.take("key") is None


def test_another_model_is_not_what_was_kept(folder: Path) -> None:
    ahead: Ahead[str] = Ahead()
    ahead.keep("key", folder, state_of(folder), "value")
    assert ahead.take("other") is None
    assert ahead.take("key") is None, "it is not held any longer"


@pytest.mark.parametrize("change", ["write", "add", "remove", "remove all"])
def test_files_that_have_changed_are_read_again(folder: Path, change: str) -> None:
    ahead: Ahead[str] = Ahead()
    ahead.keep("key", folder, state_of(folder), "value")
    path = folder / "config.json"
    if change == "write":
        path.write_text("[]")
        os.utime(path, (1, 1))
    elif change == "add":
        (folder / "tokenizer.json").touch()
    else:
        path.unlink()
    if change == "remove all":
        folder.rmdir()
    assert ahead.take("key") is None
