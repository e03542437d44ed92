"""Small hidden states inside frames: what is built on a blank computes with what is written into it."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.models.cache import make_prompt_cache

from pipeline import parcel
from pipeline.errors import FrameError
from pipeline.frames import Admission, Decode, Prefill, Result, Step
from pipeline.parcel import Blank, fits, unwrapped, wrapped
from pipeline.request import SamplingParams
from pipeline.split import Message, TensorSpec, flatten
from tests.pipeline.split.tiny import CONFIGS
from tests.pipeline.tiny_models import make_model
from tests.pipeline.two_stages import DEADLINE, two_links, worker_of


def message(*arrays: mx.array) -> tuple[tuple[TensorSpec, ...], list[mx.array]]:
    return flatten(Message(mx.zeros((1, 1), mx.int32), arrays))


def sent(arrays: Sequence[mx.array]) -> list[mx.array]:
    specs, _ = message(*arrays)
    blank = Blank(specs)
    blank.fill(unwrapped(wrapped(list(arrays)), specs))
    return blank.arrays


@pytest.mark.parametrize(
    "dtype", ["bool_", "int8", "uint16", "int64", "float16", "bfloat16", "float32"]
)
@pytest.mark.parametrize("shape", [(), (1, 1, 5), (3, 2, 7), (2, 0, 3)])
def test_arrays_arrive_as_they_were(dtype: str, shape: tuple[int, ...]) -> None:
    arrays = [(10 * mx.random.normal(shape)).astype(getattr(mx, dtype)), mx.arange(3.0)]
    for before, after in zip(arrays, sent(arrays), strict=True):
        assert (after.shape, after.dtype) == (before.shape, before.dtype)
        assert bool(mx.array_equal(after, before, equal_nan=True))


def test_an_array_that_lies_otherwise_in_memory_arrives_in_order() -> None:
    [after] = sent([mx.arange(24).reshape(4, 6)[::2].T])
    assert after.tolist() == np.arange(24).reshape(4, 6)[::2].T.tolist()


@pytest.mark.parametrize("own_size", [False, True])
def test_a_graph_may_be_built_before_its_input_is_there(
    own_size: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if own_size:  # as on CUDA
        monkeypatch.setattr(parcel, "_room", lambda size: max(size, parcel.OWN_SIZE))
    x = mx.random.normal((2, 1, 8)).astype(mx.bfloat16)
    specs, arrays = message(x)
    blank = Blank(specs)
    result = blank.arrays[0] * 2 + 1
    blank.fill(unwrapped(wrapped(arrays), specs))
    assert bool(mx.array_equal(result, x * 2 + 1))


def test_a_parcel_of_another_size_is_refused() -> None:
    specs, arrays = message(mx.zeros((1, 1, 8)))
    data = unwrapped(wrapped(arrays), specs)
    for wrong in (b"", data[:-1], data + b"\0"):
        with pytest.raises(FrameError, match=r"32 were announced"):
            Blank(specs).fill(wrong)


def test_what_is_large_does_not_fit() -> None:
    at_most = parcel.LARGEST // 4
    assert fits([TensorSpec("", (at_most,), "float32")])
    assert not fits([TensorSpec("", (at_most,), "float32"), TensorSpec("", (1,), "bool_")])
    assert not fits([])


def steps(tokens: Sequence[int]) -> list[Step]:
    """A prompt but for its last token, then one token after the other."""
    *prompt, last = tokens
    admitted = (Admission(0, SamplingParams(temperature=0.0)),)
    first = Step(0, admitted=admitted, work=Prefill((0,), (tuple(prompt),)))
    return [first, Step(1, work=Decode(0, (0,), (last,)))]


@pytest.mark.parametrize("architecture", ["llama", "gemma3n"])
def test_stages_go_without_the_ring_and_compute_the_same(architecture: str) -> None:
    links, back = two_links(), []

    def serve() -> None:
        worker_of(architecture, 1, links[1]).serve()

    with ThreadPoolExecutor(1) as pool:
        last = pool.submit(serve)
        first, prompt = worker_of(architecture, 0, links[0]), [5, 17, 3]
        try:
            for step in steps(prompt):
                assert first.run(step) is None
                result = links[0].inbound.receive(DEADLINE)
                assert isinstance(result, Result)
                back.append(result.tokens)
            for number in range(2, 8):
                [token] = back[-1]
                first.run(Step(number, work=Decode(0, (0,), (token,))))
                result = links[0].inbound.receive(DEADLINE)
                assert isinstance(result, Result)
                back.append(result.tokens)
            first.goodbye()
            last.result(DEADLINE)
        finally:
            for link in links:
                link.close()
    made = [token for tokens in back for token in tokens]
    assert made == alone(architecture, prompt, len(made))


def alone(architecture: str, prompt: list[int], count: int) -> list[int]:
    """Greedy continuation by the whole model."""
    model = make_model(CONFIGS[architecture])
    caches = make_prompt_cache(model)
    tokens, fed = [], prompt
    for _ in range(count):
        tokens.append(int(mx.argmax(model(mx.array([fed]), cache=caches)[0, -1])))
        fed = tokens[-1:]
    return tokens
