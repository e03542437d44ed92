"""generation_config.json speaks for requests that leave sampling open, and for nothing else."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.errors import CheckpointError
from server.api import params
from server.api.defaults import SamplingDefaults, read_defaults
from server.api.schemas import ChatBody
from tests.server.api.fakes import FakeEngine, make_service


def body(**fields: object) -> ChatBody:
    return ChatBody.model_validate(
        {"model": "m", "messages": [{"role": "user", "content": "hi"}], **fields}
    )


def test_without_a_file_they_are_those_of_openai(tmp_path: Path) -> None:
    defaults = read_defaults(tmp_path)
    assert (defaults.temperature, defaults.top_p) == (1.0, 1.0)
    assert (defaults.top_k, defaults.min_p, defaults.repetition_penalty) == (0, 0.0, 1.0)


def test_the_file_counts_and_null_does_not(tmp_path: Path) -> None:
    content = {"temperature": 0.6, "top_p": None, "top_k": 20, "eos_token_id": [1, 2]}
    (tmp_path / "generation_config.json").write_text(json.dumps(content))
    assert read_defaults(tmp_path) == SamplingDefaults(temperature=0.6, top_k=20)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"temperature": -1}', r"generation_config\.json: temperature = -1: "),
        ('{"top_p": "much"}', r"generation_config\.json: top_p = 'much': "),
        ('{"top_p": 0.9', "is not valid JSON"),
        ("[]", r"generation_config\.json: it = \[\]: "),
    ],
)
def test_broken_files_are_named(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "generation_config.json").write_text(text)
    with pytest.raises(CheckpointError, match=message):
        read_defaults(tmp_path)


def test_a_request_outranks_the_file() -> None:
    model = make_service(FakeEngine()).model
    assert model is not None
    recommended = replace(model, defaults=SamplingDefaults(temperature=0.2, top_p=0.9, top_k=5))
    left_open = params.sampling(body(), recommended, -1, 0)
    assert (left_open.temperature, left_open.top_p, left_open.top_k) == (0.2, 0.9, 5)
    asked = params.sampling(body(temperature=0, top_p=1, top_k=0), recommended, -1, 0)
    assert (asked.temperature, asked.top_p, asked.top_k) == (0.0, 1.0, 0)
