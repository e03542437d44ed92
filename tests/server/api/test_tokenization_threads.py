"""Millions of tokens in one body hold up nobody else."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from server.api import tokenization
from server.api.wire import json_response
from tests.server.api.conftest import Client


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/tokenize", {"prompt": "hello", "return_token_strs": True}),
        ("/detokenize", {"tokens": [5, 6]}),
    ],
)
def test_the_event_loop_looks_at_no_token(
    client: Client, monkeypatch: pytest.MonkeyPatch, path: str, body: dict[str, Any]
) -> None:
    workers: list[threading.Thread] = []
    answered = json_response

    def answer(value: Any) -> Any:
        workers.append(threading.current_thread())
        return answered(value)

    monkeypatch.setattr(tokenization, "json_response", answer)
    assert client.post(path, body).status_code == 200
    [worker] = workers
    assert worker is not threading.main_thread()
