from __future__ import annotations

from typing import Any

import hypothesis.strategies as st
import mlx.core as mx
import msgspec
import pytest
from hypothesis import given

from pipeline.errors import FrameError
from pipeline.split import Message, TensorSpec, flatten, unflatten

TOKENS = mx.zeros((1, 2), mx.int32)
DTYPES = (mx.float32, mx.bfloat16, mx.float16, mx.int32, mx.uint8, mx.bool_, mx.complex64)

shapes = st.lists(st.integers(0, 3), max_size=4).map(tuple)
arrays = st.builds(lambda shape, dtype: mx.ones(shape, dtype), shapes, st.sampled_from(DTYPES))
words = st.text("abcXYZ019_-", min_size=1, max_size=4)


def containers(children: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    items = st.lists(children, max_size=3)
    return items | items.map(tuple) | st.dictionaries(words, children, max_size=3)


trees = st.recursive(arrays | st.none(), containers, max_leaves=8)


def carried(tree: Any) -> Any:
    """What of a tree is carried: containers without arrays are None, and dicts don't hold None."""
    if isinstance(tree, dict):
        inner = {key: carried(value) for key, value in tree.items()}
        return {key: value for key, value in inner.items() if value is not None} or None
    if isinstance(tree, (list, tuple)):
        items = [carried(value) for value in tree]
        return None if all(item is None for item in items) else type(tree)(items)
    return tree


def same(a: Any, b: Any) -> bool:
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return a is b


@given(trees)
def test_round_trip_through_bytes(tree: Any) -> None:
    specs, flat = flatten(Message(TOKENS, tree))
    assert [spec.shape for spec in specs] == [array.shape for array in flat]
    assert [spec.mlx_dtype for spec in specs] == [array.dtype for array in flat]
    assert [spec.nbytes for spec in specs] == [array.nbytes for array in flat]
    encoded = msgspec.msgpack.encode(specs)
    decoded = msgspec.msgpack.decode(encoded, type=tuple[TensorSpec, ...])
    assert decoded == specs
    message = unflatten(TOKENS, decoded, flat)
    assert message.tokens is TOKENS
    assert same(message.tree, carried(tree))


@given(st.lists(st.builds(TensorSpec, st.sampled_from(
    ("", ".a", ".b", ".a.b", "(0/2)", "(1/2)", "(0/3)", "[0/2]", ".a[1/2]")
), st.just((1,)), st.just("float32")), max_size=4))  # fmt: skip
def test_any_paths_give_a_tree_or_a_frame_error(specs: list[TensorSpec]) -> None:
    flat = [mx.ones((1,)) for _ in specs]
    try:
        message = unflatten(TOKENS, specs, flat)
    except FrameError:
        return
    again, arrays_again = flatten(message)
    assert {spec.path for spec in again} == {spec.path for spec in specs}
    assert len(arrays_again) == len(flat)


def test_flatten_evaluates_nothing() -> None:
    huge = mx.zeros((1 << 20, 1 << 10)) + 1  # 4 GiB if it were
    mx.reset_peak_memory()
    before = mx.get_active_memory()
    specs, _ = flatten(Message(TOKENS, {"hidden": huge}))
    assert specs == (TensorSpec(".hidden", (1 << 20, 1 << 10), "float32"),)
    assert mx.get_peak_memory() - before < 1 << 20


@pytest.mark.parametrize(
    ("path", "shape", "dtype"),
    [
        ("", (1,), "float31"),
        ("", (1,), "Dtype"),
        ("", (-1,), "float32"),
        ("", (1,) * 9, "float32"),
        ("", (1 << 31, 1 << 31), "uint8"),
        ("hidden", (1,), "float32"),
        (".", (1,), "float32"),
        (".a b", (1,), "float32"),
        ("(0)", (1,), "float32"),
        ("(2/2)", (1,), "float32"),
        ("[0/9999]", (1,), "float32"),
        ("(0/1]", (1,), "float32"),
        (".a" * 17, (1,), "float32"),
    ],
)
def test_bad_spec_is_refused(path: str, shape: tuple[int, ...], dtype: str) -> None:
    with pytest.raises(FrameError):
        TensorSpec(path, shape, dtype)
    encoded = msgspec.msgpack.encode({"path": path, "shape": shape, "dtype": dtype})
    with pytest.raises(FrameError):
        msgspec.msgpack.decode(encoded, type=TensorSpec)


def test_arrays_must_be_those_of_the_specs() -> None:
    specs, flat = flatten(Message(TOKENS, (mx.ones((2, 3)), mx.ones((1,)))))
    for wrong in (
        flat[:1],
        [flat[1], flat[0]],
        [flat[0].astype(mx.float16), flat[1]],
        [flat[0].T, flat[1]],
    ):
        with pytest.raises(FrameError):
            unflatten(TOKENS, specs, wrong)


def test_what_can_not_travel_is_refused() -> None:
    with pytest.raises(TypeError, match="str"):
        flatten(Message(TOKENS, {"a": "text"}))
    with pytest.raises(ValueError, match="not a word"):
        flatten(Message(TOKENS, {"a.b": mx.ones((1,))}))
