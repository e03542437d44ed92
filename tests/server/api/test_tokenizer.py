from __future__ import annotations

import json
from pathlib import Path

import pytest
import structlog

from pipeline.errors import CheckpointError
from server.api.tokenizer import load_tokenizer, read_ahead
from tests.server.api.fakes import TOKENIZER, ids, make_tokenizer


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


def save(template: str, folder: Path) -> None:
    make_tokenizer(template).save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{% for m in messages %}", r"Unexpected end of template.* \(line 1\)"),
        ("hi\n{{ messages | frobnicate }}", r"No filter named 'frobnicate'\. \(line 2\)"),
    ],
)
def test_a_broken_chat_template_is_found_at_once(
    tmp_path: Path, template: str, reason: str
) -> None:
    save(template, tmp_path)
    with pytest.raises(CheckpointError, match=f"{tmp_path}: the chat template is broken: {reason}"):
        load_tokenizer(tmp_path, {}, trust_remote_code=False)


@pytest.mark.parametrize(
    "template",
    [
        "{{ raise_exception('a system message is required') }}",
        "{{ messages[0].content[0].text.x }}",
    ],
)
def test_a_template_that_wants_other_messages_is_a_warning(tmp_path: Path, template: str) -> None:
    save(template, tmp_path)
    with structlog.testing.capture_logs() as logs:
        assert load_tokenizer(tmp_path, {}, trust_remote_code=False).has_chat_template
    assert [line["event"] for line in logs] == ["the chat template refuses a plain message"]


def test_a_template_that_is_no_text(folder: Path) -> None:
    path = folder / "tokenizer_config.json"
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    path.write_text(json.dumps({**json.loads(path.read_text()), "chat_template": 5}))
    with pytest.raises(CheckpointError, match=str(folder)):
        load_tokenizer(folder, {}, trust_remote_code=False)


def test_what_was_read_ahead_is_used_for_the_same_files_and_end_tokens(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read_ahead(folder, {"eos_token_id": 5}, trust_remote_code=False)
    monkeypatch.setattr("server.api.tokenizer.read_tokenizer", None)  # nothing is read any more
    tokenizer = load_tokenizer(folder, {"eos_token_id": 5}, trust_remote_code=False)
    assert tokenizer.encode("hello") == ids("hello")
    with pytest.raises(CheckpointError):
        load_tokenizer(folder, {"eos_token_id": 5}, trust_remote_code=False)


def test_other_end_tokens_are_not_those_that_were_read_ahead(folder: Path) -> None:
    read_ahead(folder, {"eos_token_id": 5}, trust_remote_code=False)
    tokenizer = load_tokenizer(folder, {"eos_token_id": 7}, trust_remote_code=False)
    assert tokenizer.eos_token_ids == {7, TOKENIZER.eos_token_id}
