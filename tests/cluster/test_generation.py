"""The same tokens over any number of ranks, over ring and MPI, alone and together."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.harness import Cluster, tokens_of
from tests.cluster.prompts import names, prompt, tokenizer
from tests.cluster.reference import Reference

LENGTHS = (20, 300, 1500)
NEW_TOKENS = 48
CLUSTERS = ("one", "two", "three", "mpi")
# Other prompts would take the same ways through these clusters as through "three".
SHORT_RUN = {"two": (20,), "mpi": (20, 1500)}

Shared = Callable[[str], Cluster]


def clusters_and_lengths() -> Iterator[Any]:
    for name, length in product(CLUSTERS, LENGTHS):
        soak = () if length in SHORT_RUN.get(name, LENGTHS) else pytest.mark.soak
        yield pytest.param(name, length, marks=soak)


@pytest.mark.parametrize(("name", "length"), list(clusters_and_lengths()))
def test_greedy_output_is_mlx_lms(
    shared: Shared, reference: Reference, demo_model: Path, name: str, length: int
) -> None:
    cluster = shared(name)
    prompts = [prompt(demo_model, length) for length in LENGTHS]
    expected = reference.generate(prompts, NEW_TOKENS)[LENGTHS.index(length)]
    choice = cluster.complete(prompts[LENGTHS.index(length)], NEW_TOKENS, logprobs=0)
    assert tokens_of(choice) == names(demo_model, expected.tokens)
    assert choice["logprobs"]["token_logprobs"] == pytest.approx(expected.logprobs, abs=1e-3)
    assert choice["finish_reason"] == "length"


def test_greedy_text_is_mlx_lms(three: Cluster, reference: Reference, demo_model: Path) -> None:
    """Text, and not only the names of tokens, as these may be equal for two tokens."""
    prompts = [prompt(demo_model, length) for length in LENGTHS]
    [ids, _, _], [expected, _, _] = prompts, reference.generate(prompts, NEW_TOKENS)
    decode = tokenizer(demo_model).decode
    made = three.complete(ids, NEW_TOKENS)["text"]
    assert decode(ids) + made == decode(ids + expected.tokens)


SAMPLING: dict[str, Any] = {
    "temperature": 1.0,
    "top_p": 0.95,
    "presence_penalty": 0.5,
    "logprobs": 0,
}


def others(model: Path) -> list[tuple[list[int], int, dict[str, Any]]]:
    """Seven requests of all kinds: prompt, new tokens, fields."""
    return [
        (prompt(model, 1, seed=1), 60, {"temperature": 0}),
        (prompt(model, 7, seed=2), 3, {"temperature": 1.5, "seed": 2}),
        (prompt(model, 400, seed=3), 20, {"temperature": 0.7, "seed": 3, "top_k": 5}),
        (prompt(model, 33, seed=4), 40, {"temperature": 1.0, "seed": 7, "min_p": 0.1}),
        (prompt(model, 90, seed=5), 30, {"temperature": 0, "repetition_penalty": 1.2}),
        (prompt(model, 20, seed=6), 25, {"temperature": 1.0, "seed": 7}),
        (prompt(model, 20, seed=0), 50, {"temperature": 1.0, "seed": 8}),
    ]


def sampled(cluster: Cluster, model: Path, seed: int) -> list[str]:
    choice = cluster.complete(prompt(model, 20), 40, seed=seed, **SAMPLING)
    return tokens_of(choice)


@pytest.fixture(scope="module")
def alone(shared: Shared, demo_model: Path) -> list[str]:
    """What seed 7 gives alone, on one rank."""
    return sampled(shared("one"), demo_model, seed=7)


@pytest.mark.parametrize("name", ["two", "three"])
def test_a_seed_gives_the_same_over_any_number_of_ranks(
    shared: Shared, demo_model: Path, alone: list[str], name: str
) -> None:
    assert sampled(shared(name), demo_model, seed=7) == alone


@pytest.mark.parametrize("name", ["one", "two", "three"])
def test_a_seed_gives_the_same_in_a_batch(
    shared: Shared, demo_model: Path, alone: list[str], name: str
) -> None:
    cluster = shared(name)
    with ThreadPoolExecutor(8) as pool:
        for ids, max_tokens, fields in others(demo_model):
            pool.submit(cluster.complete, ids, max_tokens, **fields)
        among_others = pool.submit(sampled, cluster, demo_model, 7)
        assert among_others.result() == alone


def test_another_seed_gives_another_text(
    shared: Shared, demo_model: Path, alone: list[str]
) -> None:
    assert len({tuple(sampled(shared("one"), demo_model, s)) for s in (8, 9)} | {tuple(alone)}) == 3


def test_without_a_seed_texts_differ(three: Cluster, demo_model: Path) -> None:
    fields = {**SAMPLING, "temperature": 1.5}
    texts = {three.complete(prompt(demo_model, 20), 20, **fields)["text"] for _ in range(3)}
    assert len(texts) == 3
