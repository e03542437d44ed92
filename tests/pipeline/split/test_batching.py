"""Sequences that join and leave a batch get on stages what they get from the unsplit model, and alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import pytest
from mlx_lm.models.cache import make_prompt_cache

from pipeline.split import probe
from pipeline.split.batching import can_batch
from tests.pipeline.split.tiny import CANNOT_BATCH, CONFIGS, Pipeline, Tiny, Variant

SEQUENCES = {  # the token ids of each sequence, from its prompt to its last step
    "a": [5, 17, 3, 44, 9, 61, 2, 30, 8, 77],
    "b": [13, 50, 4, 21, 90, 7],
    "c": [7, 9, 12, 40, 41, 6],
}
# Merged caches are padded, which changes the order of sums, and one architecture ends in bfloat16.
ALONE = 5e-3  # logits are of the order of 1

Caches = list[list[Any]]  # per stage


class Batch:
    """What an engine does with caches, in the simplest form."""

    def __init__(self, call: Callable[[mx.array, Caches], mx.array], caches: Caches) -> None:
        self.call, self.caches = call, caches

    def each(self, method: str, *args: Any, **kwargs: Any) -> Caches:
        return [[getattr(c, method)(*args, **kwargs) for c in own] for own in self.caches]

    def step(self, rows: list[list[int]]) -> mx.array:
        logits = self.call(mx.array(rows), self.caches)
        mx.eval(logits)
        return logits[:, -1].astype(mx.float32)

    def prefill(self, prompts: list[list[int]], chunk: int) -> None:
        lengths = [len(prompt) for prompt in prompts]
        longest = max(lengths)
        padding = [longest - length for length in lengths]
        if any(padding):
            self.each("prepare", lengths=lengths, right_padding=padding)
        rows = [[*prompt, *[0] * pad] for prompt, pad in zip(prompts, padding, strict=True)]
        for start in range(0, longest, chunk):
            self.step([row[start : start + chunk] for row in rows])
        if any(padding):
            self.each("finalize")


def merge(singles: list[Caches]) -> Caches:
    return [
        [parts[0].merge(list(parts)) for parts in zip(*stage, strict=True)]
        for stage in zip(*singles, strict=True)
    ]


def together(model: Any, fresh: Callable[[], Caches], padded: bool) -> dict[str, mx.array]:
    """Logits [steps, V] of each sequence: b leaves when c has joined a and b, and goes on alone."""
    a, b, c = (SEQUENCES[name] for name in "abc")
    if padded:
        batch = Batch(model, merge([fresh(), fresh()]))
        batch.prefill([a[:7], b[:3]], chunk=4)
    else:
        batch = Batch(
            model, merge([prefilled(model, fresh(), prompt) for prompt in (a[:7], b[:3])])
        )
    both = batch.step([a[7:8], b[3:4]])
    joining = merge([prefilled(model, fresh(), c[:4])])
    for own, others in zip(batch.caches, joining, strict=True):
        for cache, other in zip(own, others, strict=True):
            cache.extend(other)
    three = batch.step([a[8:9], b[4:5], c[4:5]])
    left = batch.each("extract", 1)
    batch.each("filter", mx.array([0, 2]))
    two = batch.step([a[9:10], c[5:6]])
    resumed = Batch(model, left).step([b[5:6]])
    return {
        "a": mx.stack([both[0], three[0], two[0]]),
        "b": mx.stack([both[1], three[1], resumed[0]]),
        "c": mx.stack([three[2], two[1]]),
    }


def prefilled(model: Any, caches: Caches, prompt: list[int]) -> Caches:
    Batch(model, caches).prefill([prompt], chunk=4)
    return caches


def alone(model: Any, fresh: Callable[[], Caches]) -> dict[str, mx.array]:
    results = {}
    for name, steps in (("a", 3), ("b", 3), ("c", 2)):
        tokens, single = SEQUENCES[name], Batch(model, fresh())
        single.prefill([tokens[:-steps]], chunk=4)
        results[name] = mx.stack([single.step([[token]])[0] for token in tokens[-steps:]])
    return results


def distance(got: mx.array, expected: mx.array) -> float:
    far = mx.where(got == expected, 0.0, mx.abs(got - expected))
    return float(mx.max(mx.where(mx.isnan(far), mx.inf, far)).item())  # type: ignore[arg-type]


@pytest.mark.parametrize("architecture", [name for name in CONFIGS if name not in CANNOT_BATCH])
def test_batches_on_stages(architecture: str) -> None:
    tiny = Tiny.make(Variant(architecture))
    assert tiny.blueprint.batchable
    whole = tiny.whole()

    def call(tokens: mx.array, caches: Caches) -> mx.array:
        logits: mx.array = whole(tokens, cache=caches[0])
        return logits

    def fresh() -> Caches:
        return [make_prompt_cache(whole)]

    n = tiny.blueprint.num_layers
    for padded, bounds in ((True, [0, 1, 3, n]), (False, [0, n - 3, n - 1, n])):
        expected = together(call, fresh, padded)
        pipeline: Pipeline = tiny.pipeline(bounds)
        for name, logits in together(pipeline, pipeline.make_cache, padded).items():
            assert mx.array_equal(logits, expected[name]).item(), f"{name} differs at {bounds}"
    for name, logits in alone(call, fresh).items():
        assert distance(expected[name], logits) < ALONE, f"{name} is not what it is alone"


@pytest.mark.parametrize("architecture", CANNOT_BATCH)
def test_architectures_that_cannot_batch(architecture: str) -> None:
    assert not probe(Variant(architecture).build()).batchable


def test_fault_of_another_kind_is_not_taken_for_an_answer() -> None:
    model = Variant("llama").build()

    class Broken(type(model)):  # type: ignore[misc]
        def __call__(self, *_: Any, **__: Any) -> mx.array:
            raise MemoryError

    model.__class__ = Broken
    with pytest.raises(MemoryError):
        can_batch(model)
