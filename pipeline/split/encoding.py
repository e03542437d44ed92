"""Hidden states made smaller for a slow link, and restored on the other side.

float16 and bfloat16 are casts.  int8 has a scale for every 64 values of a token (for the whole vector where 64
does not divide its length): the largest magnitude among them becomes 127, so a value is off by at most
1/254 of it.  A scale for a whole token would be ruined by the few very large values that the hidden states of
most models have.  The result for a token depends on nothing else in its batch.  Scales travel in the tensor,
behind the values, 4 bytes each.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeAlias

import mlx.core as mx

from pipeline.errors import FrameError
from pipeline.split.message import DTYPES, TensorSpec

ActivationFormat: TypeAlias = Literal["native", "float16", "bfloat16", "int8"]

GROUP = 64  # values that share a scale
SCALE_BYTES = 4  # of a float32
NARROWEST = 16
"""Values in a vector from which int8 pays: below, the scale weighs more than a byte in four."""

_FLOATS = (mx.float16, mx.bfloat16, mx.float32)


def pack(
    specs: Sequence[TensorSpec], arrays: Sequence[mx.array], form: ActivationFormat
) -> tuple[tuple[TensorSpec, ...], list[mx.array]]:
    """What to send for the tensors of `flatten`; those that `form` would not make smaller stay as they are."""
    if form == "native":
        return tuple(specs), list(arrays)
    packed = [_pack(spec, array, form) for spec, array in zip(specs, arrays, strict=True)]
    return tuple(spec for spec, _ in packed), [array for _, array in packed]


def _pack(spec: TensorSpec, array: mx.array, form: str) -> tuple[TensorSpec, mx.array]:
    target = DTYPES[form]
    if array.dtype not in _FLOATS or target.size >= array.dtype.size:
        return spec, array
    if form != "int8":
        sent = _saturated(array) if form == "float16" else array
        return TensorSpec(spec.path, spec.shape, form, spec.dtype), sent.astype(target)
    if array.ndim == 0 or array.shape[-1] < NARROWEST:
        return spec, array
    width = array.shape[-1]
    scales = width // GROUP if width % GROUP == 0 else 1
    sent = _quantized(array, scales)
    return TensorSpec(spec.path, sent.shape, form, spec.dtype, scales), sent


def _saturated(array: mx.array) -> mx.array:
    """Finite values stay finite: some models have activations above float16's 65504."""
    most = mx.finfo(mx.float16).max
    return mx.where(mx.isfinite(array), mx.clip(array, -most, most), array)


def _quantized(array: mx.array, scales: int) -> mx.array:
    """int8 [..., n + 4 * scales]: the values, then the bytes of the float32 scales."""
    exact = array.astype(mx.float32).reshape(*array.shape[:-1], scales, -1)
    scale = mx.max(mx.abs(exact), axis=-1, keepdims=True) / 127
    divisor = mx.where(scale > 0, scale, 1)
    # Infinite or undefined values restore as undefined ones, with all that share their scale: it is neither.
    values = mx.round(mx.where(mx.isfinite(scale), exact / divisor, 0)).astype(mx.int8)
    scale_bytes = mx.contiguous(scale.squeeze(-1)).view(mx.int8)
    return mx.concatenate([values.reshape(array.shape), scale_bytes], axis=-1)


def unpack(
    specs: Sequence[TensorSpec], arrays: Sequence[mx.array]
) -> tuple[tuple[TensorSpec, ...], list[mx.array]]:
    """The reverse of `pack`: tensors of the shapes and dtypes that the sending stage had.

    Raises FrameError for a spec that `pack` can't have made.
    """
    restored = [_unpack(spec, array) for spec, array in zip(specs, arrays, strict=True)]
    return tuple(spec for spec, _ in restored), [array for _, array in restored]


def _unpack(spec: TensorSpec, array: mx.array) -> tuple[TensorSpec, mx.array]:
    if not spec.packed_from:
        return spec, array
    original = DTYPES[spec.packed_from]
    if original not in _FLOATS or spec.dtype not in ("float16", "bfloat16", "int8"):
        raise FrameError(f"The tensor at {spec.path!r}: {spec.packed_from} sent as {spec.dtype}.")
    if spec.dtype == "int8":
        array = _dequantized(spec, array)
    return TensorSpec(spec.path, array.shape, spec.packed_from), array.astype(original)


def _dequantized(spec: TensorSpec, array: mx.array) -> mx.array:
    width = spec.shape[-1] - SCALE_BYTES * spec.scales if spec.shape else 0
    if width <= 0 or spec.scales <= 0 or width % spec.scales:
        raise FrameError(f"The tensor at {spec.path!r}: int8 {spec.shape}, {spec.scales} scales.")
    scale = mx.contiguous(array[..., width:]).view(mx.float32)[..., None]
    values = array[..., :width].reshape(*spec.shape[:-1], spec.scales, -1)
    return (values.astype(mx.float32) * scale).reshape(*spec.shape[:-1], width)
