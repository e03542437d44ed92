"""Stubs of weight files, and the way from parameters back to tensors."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx
import pytest

from pipeline.checkpoint.header import Stub, read_header
from pipeline.checkpoint.provenance import trace
from pipeline.errors import UnsupportedModel

TENSORS = {
    "a": mx.ones((2, 3)),
    "b": mx.ones((2, 3), mx.bfloat16),
    "c": mx.zeros((4,), mx.uint32),
    "d.e": mx.zeros((0, 5), mx.float16),
    "scalar": mx.array(1.5),
}


def read(path: Path) -> dict[str, mx.array]:
    return mx.load(str(path))  # type: ignore[return-value]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "real.safetensors"
    mx.save_safetensors(str(path), TENSORS)
    return path


def test_a_stub_looks_like_its_file_and_never_gives_values(file: Path, tmp_path: Path) -> None:
    path = tmp_path / "stub.safetensors"
    stub = Stub(path, read_header(file))
    arrays = read(path)
    stub.seal()
    assert {k: (a.shape, a.dtype) for k, a in arrays.items()} == {
        k: (a.shape, a.dtype) for k, a in TENSORS.items()
    }
    for name in ("a", "b", "c", "scalar"):
        with pytest.raises(RuntimeError, match="Unable to read"):
            mx.eval(arrays[name] + 1)
    assert path.stat().st_size < file.stat().st_size


def test_tensors_are_found_through_what_sanitize_does(file: Path) -> None:
    tensors = read(file)
    a, b, c, unused = tensors["a"], tensors["b"], tensors["c"], mx.array([7.0])
    halves = mx.split(mx.concatenate([a, b.astype(mx.float32)]), 2)
    sources = trace(
        tensors,
        {
            "as it is": a,
            "same type": a.astype(mx.float32),
            "stacked": mx.stack([a, b]),
            "half": halves[0],
            "twice": c + c[::-1],
            "deep": mx.stack([mx.stack([a, a]), mx.stack([a, b.T.T])]).reshape(-1),
            "constant": unused,
        },
    )
    assert sources == {
        "as it is": {"a"},
        "same type": {"a"},
        "stacked": {"a", "b"},
        "half": {"a", "b"},
        "twice": {"c"},
        "deep": {"a", "b"},
        "constant": set(),
    }


def test_many_tensors_are_told_apart(tmp_path: Path) -> None:
    """More than MLX takes names for."""
    path = tmp_path / "many.safetensors"
    mx.save_safetensors(str(path), {f"t{i}": mx.array([i]) for i in range(1500)})
    tensors = read(path)
    found = trace(tensors, {f"p{i}": tensors[f"t{i}"] + tensors[f"t{i + 1}"] for i in range(1499)})
    assert all(found[f"p{i}"] == {f"t{i}", f"t{i + 1}"} for i in range(1499))


def test_evaluated_tensors_can_not_be_traced(file: Path) -> None:
    tensors = read(file)
    mx.eval(tensors["a"])
    with pytest.raises(UnsupportedModel, match="evaluated weights"):
        trace(tensors, dict(tensors))
