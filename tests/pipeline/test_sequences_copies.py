"""Copies of caches on a stage: what starts from a copy decodes as if it had been prefilled by itself."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import cache
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.models.cache import KVCache, RotatingKVCache, make_prompt_cache

from pipeline.errors import FrameError
from pipeline.sequences import StageSequences, states
from pipeline.split import cut_limit
from pipeline.split.caches import kind_of
from pipeline.split.forking import compact, fork
from tests.pipeline.split.tiny import CONFIGS
from tests.pipeline.tiny_models import make_model

TOLERANCE = 1e-3  # standard deviations of the logits: sums in another order
LIMITS: dict[str, int | None] = {
    "qwen3": None,
    "deepseek_v3": None,  # one latent in the place of keys and values
    "deepseek_v32": None,  # a list of two KV caches
    "gemma3_text": 3,  # layers with a sliding window of 4
    "llama": 3,
    "gpt_oss": 3,
    "llama4": 6,  # chunks of 6 tokens
    "mamba2": 0,
    "lfm2": 0,
    "falcon_h1": 0,
    "deepseek_v41": 0,  # a cache class of its own
}
CANNOT_BATCH = ("llama4", "deepseek_v41")


@cache
def model_of(architecture: str) -> Any:
    return make_model(CONFIGS[architecture])


def limit_of(architecture: str) -> int | None:
    return cut_limit(kind_of(c) for c in make_prompt_cache(model_of(architecture)))


def feed(architecture: str, caches: list[Any], tokens: list[int]) -> np.ndarray:
    logits = model_of(architecture)(mx.array([tokens]), cache=caches)[0, -1]
    mx.eval(states(caches))
    return np.array(logits)


def fresh(architecture: str, text: list[int]) -> np.ndarray:
    """Logits after a text that one call was given."""
    return feed(architecture, make_prompt_cache(model_of(architecture)), text)


def close(one: np.ndarray, other: np.ndarray) -> None:
    np.testing.assert_allclose(one, other, atol=TOLERANCE * other.std(), rtol=0)


class Stage:
    """Sequences with texts of their own; whatever is fed to one is compared with a text fed at once."""

    def __init__(self, architecture: str) -> None:
        self.architecture = architecture
        self.held = StageSequences(lambda: make_prompt_cache(model_of(architecture)))
        self.texts: dict[int, list[int]] = {}

    def admit(self, sequence: int, source: int | None = None, length: int = 0) -> None:
        self.held.admit(sequence, source, length)
        self.texts[sequence] = self.texts[source][:length] if source is not None else []

    def prefill(self, sequence: int, tokens: list[int]) -> None:
        caches = self.held.single(sequence)
        self.held.advance([sequence], [len(tokens)])
        self.texts[sequence] += tokens
        close(
            feed(self.architecture, caches, tokens), fresh(self.architecture, self.texts[sequence])
        )

    def decode(self, group: int, sequences: list[int], r: random.Random) -> None:
        caches = self.held.batch(group, sequences)
        self.held.advance(sequences, [1] * len(sequences))
        for sequence in sequences:
            self.texts[sequence].append(r.randrange(97))
        tokens = mx.array([self.texts[s][-1:] for s in sequences])
        logits = np.array(model_of(self.architecture)(tokens, cache=caches)[:, -1])
        for row, sequence in zip(logits, sequences, strict=True):
            close(row, fresh(self.architecture, self.texts[sequence]))


def words(r: random.Random, count: int) -> list[int]:
    return [r.randrange(97) for _ in range(count)]


def test_limits_follow_from_the_kinds_of_caches() -> None:
    assert {name: limit_of(name) for name in LIMITS} == LIMITS


@pytest.mark.parametrize("architecture", LIMITS)
@pytest.mark.parametrize("seed", range(2))
def test_copies_decode_as_prompts_of_their_own(architecture: str, seed: int) -> None:
    r = random.Random(seed)
    stage, limit = Stage(architecture), LIMITS[architecture]
    stage.admit(0)
    stage.prefill(0, words(r, r.choice([2, 5, 9])))
    groups: dict[int, list[int]] = {0: [], 1: []}
    for sequence in range(1, 7):
        source = r.choice([s for s in stage.texts if s in stage.held])
        held = len(stage.texts[source])
        length = r.randint(1, held) if limit is None or held <= limit else held
        stage.admit(sequence, source, length)
        stage.prefill(sequence, words(r, r.choice([1, 3, 7])))
        running = [s for s in stage.texts if s in stage.held and not stage.held.is_retained(s)]
        group = r.randrange(2)
        there = [s for s in groups[group] if s in running and r.random() < 0.7]
        new = [s for s in running if s not in groups[group] and r.random() < 0.7]
        batch = there + new or [r.choice(running)]
        if architecture in CANNOT_BATCH:
            batch = batch[:1]
        stage.decode(group, batch, r)
        for members in groups.values():
            members[:] = [s for s in members if s not in batch]
        groups[group] = batch
        if len(running) > 1 and r.random() < 0.6:
            stage.held.retain([gone := r.choice(running)])
            groups = {g: [s for s in members if s != gone] for g, members in groups.items()}
    for sequence in stage.texts:
        stage.held.release(sequence)
    assert (len(stage.held), stage.held.live, stage.held.nbytes) == (0, 0, 0)


def test_a_copy_and_its_source_go_their_own_ways() -> None:
    r = random.Random(1)
    stage = Stage("qwen3")
    stage.admit(0)
    stage.prefill(0, words(r, 9))
    stage.admit(1, 0, 9)
    stage.admit(2, 0, 4)
    for sequence in (0, 1, 2, 0, 1, 2):
        stage.prefill(sequence, words(r, 2))


def test_a_retained_sequence_takes_what_its_tokens_take() -> None:
    r = random.Random(1)
    stage = Stage("qwen3")
    for sequence, length in enumerate((60, 5, 5)):
        stage.admit(sequence)
        stage.prefill(sequence, words(r, length))
    stage.decode(0, [0, 1, 2], r)
    before = stage.held.nbytes
    stage.held.retain([1, 2])  # the two had rows as wide as that of the long one
    config = CONFIGS["qwen3"]
    entry = 2 * 4 * config["num_key_value_heads"] * config["head_dim"] * config["num_hidden_layers"]
    stage.held.retain([0])
    assert stage.held.nbytes == (61 + 6 + 6) * entry < before
    assert (len(stage.held), stage.held.live) == (3, 0)
    stage.admit(3, 0, 1)
    assert stage.held.nbytes == (61 + 6 + 6 + 1) * entry
    stage.prefill(3, words(r, 8))  # in arrays that have room for more
    assert stage.held.nbytes > (61 + 6 + 6 + 9) * entry
    stage.held.retain([3])
    assert stage.held.nbytes == (61 + 6 + 6 + 9) * entry


def test_the_members_that_stay_are_not_disturbed() -> None:
    r = random.Random(1)
    stage = Stage("lfm2")
    for sequence in range(4):
        stage.admit(sequence)
        stage.prefill(sequence, words(r, 3 + 2 * sequence))
    stage.decode(0, [0, 1, 2, 3], r)
    stage.held.retain([1, 3])
    stage.decode(0, [0, 2], r)
    stage.admit(4, 3, 10)
    stage.prefill(4, words(r, 2))
    stage.decode(0, [0, 2, 4], r)


def test_arrays_of_a_copy_are_its_own_where_it_writes() -> None:
    source = KVCache()
    source.update_and_fetch(mx.ones((1, 1, 5, 2)), mx.ones((1, 1, 5, 2)))
    (whole,), (part,) = fork([source], 0), fork([source], 3)
    for copied in (whole, part):
        copied.update_and_fetch(mx.zeros((1, 1, 1, 2)), mx.zeros((1, 1, 1, 2)))
    source.update_and_fetch(mx.full((1, 1, 1, 2), 7.0), mx.full((1, 1, 1, 2), 7.0))
    rows = [cache.keys[0, 0, : cache.offset, 0].tolist() for cache in (source, whole, part)]
    assert rows == [[1, 1, 1, 1, 1, 7], [1, 1, 1, 1, 1, 0], [1, 1, 0]]


def test_a_window_that_was_cut_is_as_one_that_never_had_more() -> None:
    source = RotatingKVCache(max_size=8)
    for _ in range(6):
        source.update_and_fetch(mx.ones((1, 1, 1, 2)), mx.ones((1, 1, 1, 2)))
    (copied,) = fork([source], 4)
    assert (copied.offset, copied._idx, copied.size(), copied.keys.shape[2]) == (2, 2, 2, 2)
    for _ in range(2):
        source.update_and_fetch(mx.ones((1, 1, 1, 2)), mx.ones((1, 1, 1, 2)))
    with pytest.raises(ValueError, match="can't be cut"):
        fork([source], 1)


def test_what_was_never_filled_is_copied_and_compacted() -> None:
    (copied,) = fork([KVCache()], 3)
    compact([copied])
    assert copied.empty()


CONTRADICTIONS: dict[str, tuple[Callable[[StageSequences], object], str]] = {
    "unknown source": (lambda held: held.admit(9, 7, 2), "sequence 7 .* not held"),
    "released source": (lambda held: (held.release(0), held.admit(9, 0, 2)), "0 .* not held"),
    "more than there is": (lambda held: held.admit(9, 0, 6), "6 tokens of sequence 0 .* has 5"),
    "nothing": (lambda held: held.admit(9, 0, 0), "0 tokens of sequence 0 .* has 5"),
    "not to be cut": (
        lambda held: held.admit(9, 0, 4),
        "4 of 5 tokens of sequence 0: .*can't be cut",
    ),
    "of a batch, not to be cut": (lambda held: held.admit(9, 1, 4), "can't be cut"),
    "admitted twice": (lambda held: held.admit(1, 0, 5), "admitted twice"),
    "unknown retained": (lambda held: held.retain([7]), "sequence 7 is retained, but"),
    "retained twice": (lambda held: (held.retain([0]), held.retain([0])), "0 is retained, but"),
    "retained and fed": (lambda held: (held.retain([0]), held.single(0)), "0 has finished"),
    "retained and decoded": (lambda held: (held.retain([1]), held.batch(0, [1])), "1 has finished"),
    "retained and joined": (lambda held: (held.retain([0]), held.batch(0, [1, 2, 0])), "finished"),
    "released twice": (
        lambda held: (held.retain([0]), held.release(0), held.release(0)),
        "not held",
    ),
}


@pytest.mark.parametrize("name", CONTRADICTIONS)
def test_contradictions(name: str) -> None:
    """Sequence 0 by itself with 5 tokens, behind a window of 4; 1 and 2 in a batch."""
    r = random.Random(1)
    stage = Stage("llama")
    for sequence in range(3):
        stage.admit(sequence)
        stage.prefill(sequence, words(r, 5))
    stage.decode(0, [1, 2], r)
    act, message = CONTRADICTIONS[name]
    with pytest.raises(FrameError, match=message):
        act(stage.held)
