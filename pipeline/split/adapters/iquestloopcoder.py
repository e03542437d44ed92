"""IQuest Loop Coder: two loops over the layers, written out upstream inside the model.

Here each loop calls the layers, so that layer calls can be watched and cut like those of any model.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models import iquestloopcoder as upstream
from mlx_lm.models.base import create_attention_mask

from pipeline.split.adapters.base import Adapter

if TYPE_CHECKING:
    from pipeline.split.run import Run


class IQuestLoopCoder(Adapter):
    """Replaces the model's loops by calls of its layers."""

    def prepare(self, model: nn.Module) -> None:
        if isinstance(model.model, _Loops):
            return
        model.model.__class__ = _Loops
        for layer in model.layers:
            layer.__class__ = _Layer

    def receive(self, run: Run) -> None:
        """In the second pass the first's caches already hold this step; upstream's mask is made before."""
        if run.pass_index:
            length = run.tokens.shape[1]
            run.model_caches[0] = _Rewound(run.model_caches[0], length)


class _Rewound:
    """A cache whose masks are those of `length` tokens ago; for the rest the cache itself."""

    def __init__(self, cache: Any, length: int) -> None:
        self._cache, self._length = cache, length

    def __getattr__(self, name: str) -> Any:
        return getattr(self._cache, name)

    def make_mask(self, *args: Any, **kwargs: Any) -> Any:
        taken = self._cache.trim(self._length)
        try:
            return self._cache.make_mask(*args, **kwargs)
        finally:
            self._cache.trim(-taken)


class _Layer(upstream.TransformerBlock):  # type: ignore[misc]
    """A layer of either loop.

    In the second loop a gate mixes global attention, to the first loop's K/V, with local attention.
    """

    def __call__(
        self,
        h: mx.array,
        mask: Any,
        window_mask: Any,
        first: Any,
        second: Any,
        gate: nn.Module | None,
    ) -> mx.array:
        attention = self.self_attn
        cache = first if gate is None else second
        queries, keys, values = attention.get_qkv(self.input_layernorm(h), cache.offset)
        if gate is None:
            keys, values = cache.update_and_fetch(keys, values)
            out = attention.attention(queries, keys, values, mask, cache=cache)
        else:
            everywhere = attention.attention(queries, *first.keys_and_values(), mask, cache=cache)
            keys, values = cache.update_and_fetch(keys, values)
            nearby = attention.attention(queries, keys, values, window_mask, cache=cache)
            out = upstream._mix_attention(gate(queries), everywhere, nearby)
        batch, _, length, _ = out.shape
        h = h + attention.o_proj(out.transpose(0, 2, 1, 3).reshape(batch, length, -1))
        result: mx.array = h + self.mlp(self.post_attention_layernorm(h))
        return result


class _Loops(upstream.IQuestLoopCoderModel):  # type: ignore[misc]
    """The model with its loops as layer calls; needs caches."""

    def __call__(self, inputs: mx.array, cache: list[Any]) -> mx.array:
        h, n = self.embed_tokens(inputs), len(self.layers)
        mask = create_attention_mask(h, cache[0])
        window_mask = create_attention_mask(h, cache[n], window_size=self.loop_window_size)
        for second_loop in (False, True):
            for i, layer in enumerate(self.layers):
                gate = self.gate_projections[i] if second_loop else None
                h = layer(h, mask, window_mask, cache[i], cache[n + i], gate)
        normed: mx.array = self.norm(h)
        return normed
