"""CPU stand-ins for kernels that mlx-lm has for Metal only, and for a package that one architecture imports.

They replace code inside of a layer, so the split does not see them.
"""

from __future__ import annotations

import sys
import types
from typing import Any

import mlx.core as mx
import pytest
from mlx_lm.models import bitlinear_layers
from mlx_lm.models.base import create_attention_mask


def install(patch: pytest.MonkeyPatch) -> None:
    """Make all architectures importable, and runnable without Metal."""
    patch.setitem(sys.modules, "hf_olmo", types.ModuleType("hf_olmo"))
    from mlx_lm.models import olmo

    # Upstream adds the mask "causal" to the scores, so that even the unsplit model can't prefill.
    patch.setattr(olmo, "create_attention_mask", _additive_mask)
    if mx.metal.is_available():
        return
    patch.setattr(bitlinear_layers.BitLinear, "execute_matmul_kernel", _ternary_matmul)
    try:
        from mlx_lm.models import muse_spark
    except ImportError:  # an mlx-lm older than this architecture
        return
    for function in (
        qk_norm,
        qk_norm_rope,
        pre_norm,
        norm_add_norm,
        expert_routing,
        post_expert_norm_combine,
        rms_norm_sigmoid_gate,
    ):
        patch.setattr(muse_spark, function.__name__, function)


def _additive_mask(h: mx.array, cache: Any = None, **_: Any) -> mx.array | None:
    mask = create_attention_mask(h, cache, return_array=True)
    return None if mask is None else mx.where(mask, 0.0, -1e9).astype(h.dtype)


def _ternary_matmul(self: Any, x: mx.array, packed: mx.array) -> mx.array:
    rows = [((packed >> (2 * i)) & 3).astype(mx.float32) - 1 for i in range(4)]
    y = x @ mx.concatenate(rows, 0).T.astype(x.dtype)
    return y / self.weight_scale if self.invert_weight_scales else y * self.weight_scale


# ---- muse_spark: what its fused kernels compute


def _rms(x: mx.array, eps: float) -> mx.array:
    x = x.astype(mx.float32)
    return x * mx.rsqrt((x * x).mean(-1, keepdims=True) + eps)


def qk_norm(
    qkvg: mx.array, *, n_heads: int, n_kv_heads: int, head_dim: int, eps: float, query_scale: float
) -> tuple[mx.array, mx.array]:
    lead, n_q, n_k = qkvg.shape[:-1], n_heads * head_dim, n_kv_heads * head_dim
    q = _rms(qkvg[..., :n_q].reshape(*lead, n_heads, head_dim), eps) * query_scale
    k = _rms(qkvg[..., n_q : n_q + n_k].reshape(*lead, n_kv_heads, head_dim), eps)
    return q.astype(qkvg.dtype), k.astype(qkvg.dtype)


def qk_norm_rope(
    qkvg: mx.array, *, rope_base: float, offset: Any, **sizes: Any
) -> tuple[mx.array, mx.array]:
    def rotate(x: mx.array) -> mx.array:
        rotated = mx.fast.rope(
            x.swapaxes(1, 2),
            sizes["head_dim"],
            traditional=True,
            base=rope_base,
            scale=1.0,
            offset=offset,
        )
        return rotated.swapaxes(1, 2)

    q, k = qk_norm(qkvg, **sizes)
    return rotate(q), rotate(k)


def pre_norm(stream: mx.array, norm: Any, *, dtype: mx.Dtype) -> mx.array:
    return (_rms(stream, norm.eps) * norm.weight).astype(dtype)


def norm_add_norm(
    branch: mx.array,
    stream: mx.array,
    *,
    alpha: float,
    beta: float,
    post_weight: mx.array | None,
    post_eps: float,
    next_norm: Any,
) -> tuple[mx.array, mx.array | None]:
    scaled = branch if post_weight is None else branch * post_weight.astype(branch.dtype)
    out = alpha * stream + beta * _rms(scaled, post_eps)
    return out, None if next_norm is None else pre_norm(out, next_norm, dtype=branch.dtype)


def expert_routing(
    logits: mx.array,
    bias: mx.array,
    *,
    top_k: int,
    multiplier: float,
    score_eps: float,
    route_scale: float,
) -> tuple[mx.array, mx.array]:
    scores = mx.sigmoid(logits * multiplier)
    chosen = mx.argsort(-(scores + bias), axis=-1)[..., :top_k]
    weights = mx.take_along_axis(scores, chosen, -1)
    return chosen, weights / (weights.sum(-1, keepdims=True) + score_eps) * route_scale


def post_expert_norm_combine(
    experts: mx.array, weights: mx.array, *, norm_weight: mx.array, eps: float
) -> mx.array:
    mixed = (_rms(experts * norm_weight, eps) * weights[..., None]).sum(-2)
    return mixed.astype(experts.dtype)


def rms_norm_sigmoid_gate(x: mx.array, gate: mx.array, *, eps: float) -> mx.array:
    batch, heads, length, dim = x.shape
    y = _rms(x, eps).transpose(0, 2, 1, 3).reshape(batch, length, heads * dim)
    return (y * mx.sigmoid(gate.astype(mx.float32))).astype(x.dtype)
