"""Hidden states in fewer bytes: what comes back, and how far off it may be."""

from __future__ import annotations

from collections.abc import Sequence

import hypothesis.strategies as st
import mlx.core as mx
import msgspec
import numpy as np
import pytest
from hypothesis import given

from pipeline.errors import FrameError
from pipeline.split import ActivationFormat, Message, TensorSpec, flatten, pack, unflatten, unpack

TOKENS = mx.zeros((1, 2), mx.int32)
FORMATS: tuple[ActivationFormat, ...] = ("native", "float16", "bfloat16", "int8")

# Largest error, relative to the largest magnitude of the vector.
ERROR = {"native": 0.0, "float16": 2**-11, "bfloat16": 2**-8, "int8": 0.5001 / 127}

vectors = st.lists(st.floats(-(2.0**99), 2.0**99, width=32), min_size=16, max_size=40)


def travel(array: mx.array, form: ActivationFormat) -> tuple[Sequence[TensorSpec], mx.array]:
    """What was announced for the array, and the array as the next stage has it."""
    specs, sent = pack(*flatten(Message(TOKENS, {"hidden": array})), form)
    assert [(spec.shape, spec.mlx_dtype) for spec in specs] == [(a.shape, a.dtype) for a in sent]
    announced = msgspec.msgpack.decode(msgspec.msgpack.encode(specs), type=tuple[TensorSpec, ...])
    message = unflatten(TOKENS, *unpack(announced, sent))
    return announced, message.tree["hidden"]


@given(st.sampled_from(FORMATS), vectors)
def test_the_error_is_bounded_by_the_vectors_largest_value(
    form: ActivationFormat, vector: list[float]
) -> None:
    if form == "float16":  # narrower in range: larger values saturate
        vector = [value % 60000.0 for value in vector]
    original = mx.array([[vector]], mx.float32)
    _, received = travel(original, form)
    assert received.dtype == mx.float32
    assert received.shape == original.shape
    off = np.abs(np.array(received, np.float64) - np.array(original, np.float64)).max()
    smallest = 1e-36  # below, float32 itself has no digits left
    assert off <= ERROR[form] * max(map(abs, vector)) + smallest


@given(st.lists(st.lists(st.floats(-100, 100, width=32), min_size=16, max_size=16), min_size=1))
def test_int8_of_a_token_does_not_depend_on_the_others(rows: list[list[float]]) -> None:
    _, together = travel(mx.array([rows], mx.float32), "int8")
    for i, row in enumerate(rows):
        _, alone = travel(mx.array([[row]], mx.float32), "int8")
        assert mx.array_equal(together[0, i], alone[0, 0])


@pytest.mark.parametrize("form", FORMATS)
def test_bytes_on_the_wire(form: ActivationFormat) -> None:
    specs, _ = travel(mx.random.normal((2, 3, 64)), form)
    each = {"native": 4 * 64, "float16": 2 * 64, "bfloat16": 2 * 64, "int8": 64 + 4}
    assert sum(spec.nbytes for spec in specs) == 2 * 3 * each[form]


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize(
    "array",
    [
        mx.arange(64),
        mx.ones((2, 64), mx.bool_),
        mx.ones((2, 3), mx.float16),
        mx.array(1.5, mx.bfloat16),
    ],
)
def test_what_would_not_get_smaller_travels_as_it_is(
    form: ActivationFormat, array: mx.array
) -> None:
    [spec], received = travel(array, form)
    assert not spec.packed_from
    assert received.dtype == array.dtype
    assert mx.array_equal(received, array)


def test_bfloat16_is_packed_to_int8_only() -> None:
    array = mx.random.normal((1, 2, 64)).astype(mx.bfloat16)
    for form in ("float16", "bfloat16"):
        [spec], received = travel(array, form)
        assert not spec.packed_from
        assert mx.array_equal(received, array)
    [spec], received = travel(array, "int8")
    assert spec.packed_from == "bfloat16"
    assert received.dtype == mx.bfloat16


def test_float16_saturates_instead_of_overflowing() -> None:
    _, received = travel(mx.full((1, 1, 16), 1e6), "float16")
    assert received.tolist() == [[[65504.0] * 16]]


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("broken", [float("inf"), float("-inf"), float("nan")])
def test_what_is_not_finite_is_never_made_finite(form: ActivationFormat, broken: float) -> None:
    """The sampler tells such a request; its neighbours in the batch are not touched."""
    array = mx.ones((2, 1, 32))
    array[0, 0, 5] = broken
    _, received = travel(array, form)
    assert not mx.isfinite(received[0, 0, 5]).item()
    assert mx.allclose(received[1], array[1]).item()


def test_a_large_value_spoils_only_its_64_neighbours() -> None:
    array = mx.ones((1, 1, 192))
    array[0, 0, 70] = 1e4
    specs, received = travel(array, "int8")
    assert specs[0].shape == (1, 1, 192 + 3 * 4)
    assert mx.array_equal(received[..., :64], array[..., :64])
    assert mx.array_equal(received[..., 128:], array[..., 128:])
    assert not mx.array_equal(received[..., 64:128], array[..., 64:128])


@pytest.mark.parametrize("form", FORMATS)
def test_zeros_stay_zeros(form: ActivationFormat) -> None:
    _, received = travel(mx.zeros((1, 2, 32)), form)
    assert not mx.any(received).item()


@pytest.mark.parametrize(
    ("spec", "array"),
    [
        (TensorSpec(".h", (1, 4), "int8", "float32", 1), mx.zeros((1, 4), mx.int8)),
        (TensorSpec(".h", (1, 8), "int8", "float32"), mx.zeros((1, 8), mx.int8)),
        (TensorSpec(".h", (1, 8), "int8", "float32", -1), mx.zeros((1, 8), mx.int8)),
        (TensorSpec(".h", (1, 23), "int8", "float32", 2), mx.zeros((1, 23), mx.int8)),
        (TensorSpec(".h", (), "int8", "float32", 1), mx.array(0, mx.int8)),
        (TensorSpec(".h", (1, 8), "int8", "int32", 1), mx.zeros((1, 8), mx.int8)),
        (TensorSpec(".h", (1, 8), "uint8", "float32"), mx.zeros((1, 8), mx.uint8)),
    ],
)
def test_a_spec_that_pack_never_makes_is_refused(spec: TensorSpec, array: mx.array) -> None:
    with pytest.raises(FrameError, match=r"\.h"):
        unpack([spec], [array])


def test_packed_from_something_unknown_is_refused() -> None:
    with pytest.raises(FrameError, match="float12"):
        TensorSpec(".h", (1, 8), "int8", "float12")
