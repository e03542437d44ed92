from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline.errors import CheckpointError
from server.api.tokenizer import load_tokenizer
from tests.server.api.fakes import TOKENIZER, ids


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    TOKENIZER.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    return tmp_path


@pytest.mark.parametrize("named", [5, [5, 7]])
def test_end_tokens_come_from_the_configuration(folder: Path, named: int | list[int]) -> None:
    tokenizer = load_tokenizer(folder, {"eos_token_id": named}, trust_remote_code=False)
    expected = {named} if isinstance(named, int) else set(named)
    assert tokenizer.eos_token_ids == expected | {TOKENIZER.eos_token_id}
    assert tokenizer.has_chat_template
    assert tokenizer.encode("hello") == ids("hello")


@pytest.mark.parametrize("damage", ["", "{", '{"version": "1.0"}'])
def test_broken_file(folder: Path, damage: str) -> None:
    (folder / "tokenizer.json").write_text(damage)
    with pytest.raises(CheckpointError, match=str(folder)):
        load_tokenizer(folder, {}, trust_remote_code=False)


def test_no_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=str(tmp_path)):
        load_tokenizer(tmp_path, {}, trust_remote_code=False)
