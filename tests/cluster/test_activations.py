"""Hidden states that travel in fewer bytes, over real ranks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cluster.harness import MODEL, Cluster, Spec
from tests.cluster.prompts import prompt

Start = Callable[[Spec], Cluster]


def test_int8_is_close_to_native(start: Start, three: Cluster, demo_model: Path) -> None:
    cluster = start(Spec(ranks=2, settings=("network.activation_format=int8",))).wait_ready()
    ids = prompt(demo_model, 200, seed=5)
    packed = likeliest(cluster, ids)
    assert packed != likeliest(three, ids), "nothing was packed"
    assert packed == pytest.approx(likeliest(three, ids), abs=0.5)
    question = {
        "model": MODEL,
        "messages": [{"role": "user", "content": "What is the capital of France?"}],
        "temperature": 0,
        "max_tokens": 20,
    }
    answer = cluster.http.post("/v1/chat/completions", json=question).json()
    assert "Paris" in answer["choices"][0]["message"]["content"]
    cluster.stop()


def likeliest(cluster: Cluster, ids: list[int]) -> list[float]:
    """Log-probability of the likeliest next token after several beginnings of a prompt."""
    lengths = range(20, len(ids), 30)
    choices = [cluster.complete(ids[:length], 1, logprobs=0) for length in lengths]
    return [choice["logprobs"]["token_logprobs"][0] for choice in choices]
