"""One stage of a pipeline: some layers of a model, made from the whole model in place.

The list of layers keeps its length, so that indices in the model's code still hold.  A layer of
another stage is a hole: the same object without arrays, whose call answers what came from the
previous stage.  The last local layer leaves the forward by an exception, so that norm and head run on
the last stage only.  Modules that only the code before the local layers uses answer zeros.
"""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_map
from mlx_lm.models.cache import make_prompt_cache

from pipeline.split.adapters import make_adapter
from pipeline.split.blueprint import Blueprint, Shape, fill
from pipeline.split.caches import advance, arrays_of, plan_caches
from pipeline.split.message import Message
from pipeline.split.modules import array_keys, join, modules_inside, override, parameter_names
from pipeline.split.run import Run


class _LeaveForward(Exception):
    """The last local layer has run."""


class Stage:
    """Layers [start, end) of `model`, which it takes over and strips of everything else.

    Build it before the weights are loaded: afterwards `model` holds exactly `parameter_names()`, so
    that a strict load of those names fits.  One call at a time.  Between calls it holds weights only:
    all state of a sequence is in its caches.

    Raises ValueError for a range outside of the model, or a blueprint of another model.
    """

    def __init__(self, model: nn.Module, blueprint: Blueprint, start: int, end: int) -> None:
        if not 0 <= start < end <= blueprint.num_layers:
            raise ValueError(f"No layers [{start}, {end}) in a model of {blueprint.num_layers}.")
        self.model, self.blueprint, self.start, self.end = model, blueprint, start, end
        self._run: Run | None = None
        self._adapter = make_adapter(model)
        self._adapter.prepare(model)
        model.eval()
        for name in parameter_names(model) ^ blueprint.placement.keys():
            raise ValueError(f"The blueprint of {blueprint.architecture!r} differs at {name!r}.")
        num_extras = len(self._adapter.extra_caches(model, start))
        self.caches = plan_caches(blueprint, start, end, num_extras)
        self.outgoing = blueprint.crossing(end)
        layers = list(model.layers)
        self._strip(layers)
        for i, layer in enumerate(layers):
            self._hook(i, layer)
        self._adapter.attach(self)
        self._names = parameter_names(model)

    @property
    def is_first(self) -> bool:
        """Whether this stage takes token ids."""
        return self.start == 0

    @property
    def is_last(self) -> bool:
        """Whether this stage answers logits."""
        return self.end == self.blueprint.num_layers

    @property
    def run(self) -> Run:
        """The call that is going on; for adapters."""
        if self._run is None:
            raise RuntimeError("The model of a stage can only be called through the stage.")
        return self._run

    def parameter_names(self) -> frozenset[str]:
        """Names of the parameters that this stage holds."""
        return self._names

    def make_cache(self) -> list[Any]:
        """The state of one fresh sequence on this stage: caches of mlx-lm, to be merged like a model's."""
        extras = self._adapter.extra_caches(self.model, self.start)
        return self.caches.select(make_prompt_cache(self.model), extras)

    def __call__(
        self, inputs: mx.array | Message, cache: list[Any], pass_index: int = 0
    ) -> Message | mx.array:
        """Run one step; lazy, like any call of a model.

        `inputs`: token ids int32 [B, L] on the first stage of the first pass, else the message of the
        stage before (of the last stage, for the first stage of another pass).
        `cache`: what `make_cache` gave, or batches merged from it; updated in place.
        Returns the message for the next stage, or after the last stage of the last pass the logits
        [B, L, V].  Raises FrameError for a message that no stage of this model sends.  After any
        exception the stage can be called again; the caches of that call may be half updated.
        """
        run = Run(self, inputs, cache, pass_index)
        self._adapter.receive(run)
        self._run = run
        try:
            logits: mx.array = self.model(run.tokens, cache=run.model_caches)
        except _LeaveForward:
            extras = self._adapter.send(run)
            return Message(run.tokens, self._settle(run, run.outgoing_tree(extras)))
        finally:
            self._run = None
        settled: mx.array = self._settle(run, logits)
        return settled

    def _settle(self, run: Run, output: Any) -> Any:
        """Advance the shadows, and tie them to the output: else their graphs would grow with every token."""
        shadows = run.caches[self.caches.first_shadow :]
        if not shadows or run.pass_index < self.blueprint.passes - 1:
            return output
        for shadow in shadows:
            advance(shadow, *run.tokens.shape[:2])
        arrays = arrays_of(shadows)
        return tree_map(
            lambda leaf: mx.depends(leaf, arrays) if isinstance(leaf, mx.array) else leaf, output
        )

    def _strip(self, layers: list[nn.Module]) -> None:
        """Delete all arrays of other stages; stub the modules that the code of this stage still calls."""
        inside = modules_inside(layers)
        kept = self.blueprint.parameters(self.start, self.end)
        modules = list(self.model.named_modules())
        held = {
            (id(module), key)
            for path, module in modules
            for key, names in array_keys(module)
            if any(join(path, name) in kept for name in names)
        }
        for path, module in modules:
            dropped = [key for key, _ in array_keys(module) if (id(module), key) not in held]
            for key in dropped:
                del module[key]
            if dropped and id(module) not in inside and path in self.blueprint.stubs:
                self._stub(module, self.blueprint.stubs[path])

    def _stub(self, module: nn.Module, shape: Shape) -> None:
        def call(_: nn.Module, *args: Any, **kwargs: Any) -> mx.array:
            run = self.run
            return mx.zeros(fill(shape, *run.tokens.shape), run.dtype)

        override(module, __call__=call)

    def _hook(self, index: int, layer: nn.Module) -> None:
        base, adapter = type(layer), self._adapter
        final = len(self.blueprint.calls) - 1

        def call(layer_: nn.Module, *args: Any, **kwargs: Any) -> Any:
            run = self.run
            visit = run.visit
            run.visit = visit + 1
            if visit < run.first_visit:
                if index in run.incoming:
                    run.fetch(index)
                return adapter.hole(run, index, kwargs)
            if visit < run.last_visit or visit == final:
                return base.__call__(layer_, *args, **kwargs)
            kwargs = adapter.before_exit(kwargs)
            output = base.__call__(layer_, *args, **kwargs)
            run.output = adapter.encode(run, output, kwargs)
            raise _LeaveForward

        override(layer, __call__=call)
