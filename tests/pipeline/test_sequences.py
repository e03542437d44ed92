"""A stage's caches: what a sequence decodes must not depend on whom it decodes with, or where it was before."""

from __future__ import annotations

import random
from functools import cache
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten
from mlx_lm.models.cache import ArraysCache, CacheList, KVCache, RotatingKVCache, make_prompt_cache

from pipeline.errors import FrameError
from pipeline.sequences import StageSequences, states
from tests.pipeline.split.tiny import CONFIGS
from tests.pipeline.tiny_models import make_model

# Small versions of architectures that have, together, every kind of cache that can be batched.
CACHES: dict[str, set[type]] = {
    "llama": {KVCache, RotatingKVCache},  # some layers with a sliding window of 4 tokens
    "lfm2": {KVCache, ArraysCache},
    "falcon_h1": {CacheList},  # an ArraysCache and a KVCache each
}
CHUNK = 3
LENGTH = 26
TOLERANCE = 1e-3  # standard deviations of the logits: sums in another order


@cache
def model_of(architecture: str) -> Any:
    return make_model(CONFIGS[architecture])


@cache
def lone_logits(architecture: str, sequence: int) -> np.ndarray:
    """Logits [LENGTH, V] after each token of a sequence that is alone, fed one token at a time."""
    model = model_of(architecture)
    caches = make_prompt_cache(model)
    rows = [model(mx.array([[token]]), cache=caches)[0, -1] for token in text(sequence)]
    return np.array(mx.stack(rows))


def text(sequence: int) -> list[int]:
    r = random.Random(sequence)
    return [r.randrange(97) for _ in range(LENGTH)]


class Walk:
    """Sequences with known texts on one stage; every logit is compared."""

    def __init__(self, architecture: str) -> None:
        self.architecture, self.model = architecture, model_of(architecture)
        self.held = StageSequences(lambda: make_prompt_cache(self.model))
        self.fed: dict[int, int] = {}
        self.groups: dict[int, list[int]] = {}

    def admit(self, sequence: int, prompt: int) -> None:
        """Prefill all but the last token of the prompt, in chunks."""
        self.held.admit(sequence)
        for start in range(0, prompt - 1, CHUNK):
            chunk = text(sequence)[start : min(start + CHUNK, prompt - 1)]
            caches = self.held.single(sequence)
            self.model(mx.array([chunk]), cache=caches)
            mx.eval(states(caches))
        self.fed[sequence] = prompt - 1

    def admit_together(self, prompts: dict[int, int]) -> None:
        """The last chunks of these prompts side by side; what comes before them, each by itself."""
        lengths, rows = [], []
        for sequence, prompt in prompts.items():
            split = (prompt - 1) // 2
            self.admit(sequence, split + 1)
            rows.append(text(sequence)[split : prompt - 1])
            lengths.append(len(rows[-1]))
            self.fed[sequence] = prompt - 1
        padded = [[*row, *[0] * (max(lengths) - len(row))] for row in rows]
        joined = self.held.join(list(prompts), lengths)
        self.model(mx.array(padded), cache=joined)
        mx.eval(states(self.held.part(list(prompts), joined)))

    def decode(self, group: int, sequences: list[int]) -> None:
        caches = self.held.batch(group, sequences)
        tokens = mx.array([[text(s)[self.fed[s]]] for s in sequences])
        logits = np.array(self.model(tokens, cache=caches)[:, -1])
        for row, sequence in zip(logits, sequences, strict=True):
            expected = lone_logits(self.architecture, sequence)[self.fed[sequence]]
            np.testing.assert_allclose(row, expected, atol=TOLERANCE * expected.std(), rtol=0)
            self.fed[sequence] += 1
        for members in self.groups.values():
            members[:] = [s for s in members if s not in sequences]
        self.groups[group] = list(sequences)

    def release(self, sequence: int) -> None:
        self.held.release(sequence)
        del self.fed[sequence]
        for members in self.groups.values():
            if sequence in members:
                members.remove(sequence)

    def any_batch(self, r: random.Random) -> tuple[int, list[int]]:
        """Any group and members that a frame may name: some who are there, then some who are elsewhere."""
        group = r.randrange(3)
        there = [s for s in self.groups.get(group, []) if r.random() < 0.8]
        others = [s for s in self.fed if s not in self.groups.get(group, []) and r.random() < 0.4]
        r.shuffle(others)
        return group, there + others or [r.choice(list(self.fed))]


@pytest.mark.parametrize("architecture", CACHES)
@pytest.mark.parametrize("seed", range(3))
def test_prefilled_side_by_side_as_alone(architecture: str, seed: int) -> None:
    """With the window of 4 tokens full, in part or empty before, and padding where there are no states."""
    r = random.Random(seed)
    walk = Walk(architecture)
    for first in range(0, 9, 3):
        prompts = {first + i: r.choice([2, 4, 7, 12, 15]) for i in range(3)}
        if ArraysCache in CACHES[architecture] or CacheList in CACHES[architecture]:
            prompts = dict.fromkeys(prompts, 12)
        walk.admit_together(prompts)
        for _ in range(5):
            walk.decode(*walk.any_batch(r))


def test_the_models_have_every_kind_of_cache() -> None:
    for architecture, kinds in CACHES.items():
        assert {type(c) for c in make_prompt_cache(model_of(architecture))} == kinds


@pytest.mark.parametrize("architecture", CACHES)
@pytest.mark.parametrize("seed", range(3))
def test_joining_leaving_and_moving_change_no_logits(architecture: str, seed: int) -> None:
    r = random.Random(seed)
    walk = Walk(architecture)
    for sequence in range(8):
        walk.admit(sequence, r.choice([1, 2, 5, 9, 14]))
        for _ in range(4):
            walk.decode(*walk.any_batch(r))
            for finished in [
                s for s, fed in walk.fed.items() if fed == LENGTH or r.random() < 0.05
            ]:
                walk.release(finished)
            if not walk.fed:
                break
    for sequence in list(walk.fed):
        walk.release(sequence)
    assert (len(walk.held), walk.held.nbytes) == (0, 0)


def test_a_member_of_a_batch_goes_to_a_group_of_its_own_and_back() -> None:
    """What the scheduler does when it splits three into two and one."""
    walk = Walk("llama")
    for sequence in range(3):
        walk.admit(sequence, 4)
    walk.decode(0, [0, 1, 2])
    walk.decode(1, [1])
    walk.decode(0, [0, 2])
    walk.decode(0, [0, 2, 1])


def test_a_model_that_cannot_batch_needs_no_merge() -> None:
    class Lone(KVCache):
        merge = None

    model = model_of("llama")
    held = StageSequences(lambda: [Lone() for _ in make_prompt_cache(model)])
    for sequence in range(2):
        held.admit(sequence)
    for group in (0, 1, 0):
        assert all(isinstance(c, Lone) for c in held.batch(group, [group]))


@pytest.fixture
def walk() -> Walk:
    """Sequences 0 and 1 in group 0, and 2 by itself."""
    walk = Walk("llama")
    for sequence in range(3):
        walk.admit(sequence, 4)
    walk.decode(0, [0, 1])
    return walk


def test_admitted_twice(walk: Walk) -> None:
    for sequence in (0, 2):  # in a batch, by itself
        with pytest.raises(FrameError, match=f"sequence {sequence} is admitted twice"):
            walk.held.admit(sequence)


def test_released_but_not_held(walk: Walk) -> None:
    for sequence in (0, 2, 7):
        if sequence != 7:
            walk.held.release(sequence)
        with pytest.raises(FrameError, match=f"sequence {sequence} is released but not held"):
            walk.held.release(sequence)


def test_prefill_of_a_sequence_in_a_batch_or_unknown(walk: Walk) -> None:
    for sequence in (0, 7):
        with pytest.raises(FrameError, match=f"sequence {sequence} is not held by itself"):
            walk.held.single(sequence)


@pytest.mark.parametrize("members", [[7], [0, 1, 7], [2, 7]])
def test_decode_of_an_unknown_sequence(walk: Walk, members: list[int]) -> None:
    with pytest.raises(FrameError, match="sequence 7 is not held"):
        walk.held.batch(0, members)


@pytest.mark.parametrize("members", [[1, 0], [2, 0, 1], [0, 2, 1]])
def test_members_in_another_order(walk: Walk, members: list[int]) -> None:
    with pytest.raises(FrameError, match=r"group 0 holds \[0, 1\], the frame says"):
        walk.held.batch(0, members)


@pytest.mark.parametrize("members", [[0, 0], [0, 1, 2, 2]])
def test_a_member_twice(walk: Walk, members: list[int]) -> None:
    with pytest.raises(FrameError, match="a sequence is twice in"):
        walk.held.batch(0, members)


def test_what_is_held_and_what_it_takes(walk: Walk) -> None:
    held = walk.held
    assert len(held) == 3
    assert 0 in held
    assert 2 in held
    assert 7 not in held
    before = held.nbytes
    assert before > 0
    held.release(2)
    assert 0 < held.nbytes < before
    held.release(0)
    walk.decode(0, [1])  # the one that stays is not disturbed
    held.release(1)
    assert (len(held), held.nbytes) == (0, 0)


def test_states_reach_every_array() -> None:
    """Nothing of an evaluated cache hangs on a lazy graph, whatever its parts are."""
    parts = CacheList(ArraysCache(2), KVCache())
    parts[1].update_and_fetch(mx.ones((1, 1, 2, 4)), mx.ones((1, 1, 2, 4)))
    found = [leaf for _, leaf in tree_flatten(states([parts, KVCache()]))]
    assert any(leaf is parts[1].keys for leaf in found)
    mx.eval(states([parts, KVCache()]))
