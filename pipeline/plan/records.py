"""What planning is about: costs of a model, resources of nodes, ranges of layers.  Plain data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate


@dataclass(frozen=True)
class LayerRange:
    """Layers [start, end), at least one."""

    start: int
    end: int

    def __len__(self) -> int:
        return self.end - self.start

    def __str__(self) -> str:
        """First and last layer, both included, as configuration files have them."""
        return f"{self.start}-{self.end - 1}" if len(self) > 1 else str(self.start)


@dataclass(frozen=True)
class SharedParameters:
    """Parameters that several places need; every stage with one of these places holds one copy.

    A tied embedding has no layers, `first` and `last`.
    """

    layers: frozenset[int]
    first: bool
    last: bool
    size: int  # bytes


@dataclass(frozen=True)
class ModelCosts:
    """Costs of a model.  Sizes are bytes in memory; work is bytes that one decode step reads.

    `first_bytes`, `last_bytes`: parameters of the first or the last stage only (embedding; norm and head).
    `layer_work`: defaults to `layer_bytes`; less where only some experts are active.
    `last_work`: of norm and head, tied or not; defaults to `last_bytes`.  The embedding is a look-up: no work.
    `kv_bytes_per_token`: growth of the layer's caches; None if unknown.
    `layer_seconds`, `last_seconds`: of a decode step, measured on a node of speed 1; used in place of work when
    given.

    Prefill is taken to spend its time on the layers as a decode step does, and none on norm and head, which it
    leaves out.  So it is where all layers are alike.  A chunk reads nearly all experts of a layer, but computes
    with the active ones: layers with experts count the same beside dense ones in both.  What only rank 0 does
    beside its layers (API, tokens, schedule) counts nowhere.
    """

    layer_bytes: tuple[int, ...]
    first_bytes: int = 0
    last_bytes: int = 0
    shared: tuple[SharedParameters, ...] = ()
    layer_work: tuple[float, ...] = ()
    last_work: float | None = None
    kv_bytes_per_token: tuple[int, ...] | None = None
    layer_seconds: tuple[float, ...] | None = None
    last_seconds: float = 0.0

    def __post_init__(self) -> None:
        for name in ("layer_work", "kv_bytes_per_token", "layer_seconds"):
            values = getattr(self, name)
            if values and len(values) != self.num_layers:
                raise ValueError(f"{name} has {len(values)} values for {self.num_layers} layers.")

    @property
    def num_layers(self) -> int:
        return len(self.layer_bytes)

    @property
    def total_bytes(self) -> int:
        """Of the whole model on one node."""
        return self.parameter_bytes(LayerRange(0, self.num_layers))

    def parameter_bytes(self, layers: LayerRange) -> int:
        """Bytes of parameters on the stage of `layers`."""
        first, last = layers.start == 0, layers.end == self.num_layers
        size = self._sizes[layers.end] - self._sizes[layers.start]
        size += self.first_bytes * first + self.last_bytes * last
        for part in self.shared:
            if (
                (part.first and first)
                or (part.last and last)
                or any(layers.start <= layer < layers.end for layer in part.layers)
            ):
                size += part.size
        return size

    def kv_bytes(self, layers: LayerRange, tokens: int) -> int:
        """Bytes of caches on the stage of `layers` for `tokens` tokens; 0 if unknown."""
        if self.kv_bytes_per_token is None:
            return 0
        return tokens * sum(self.kv_bytes_per_token[layers.start : layers.end])

    def prefill_time(self, layers: LayerRange) -> float:
        """Cost of the layers on a node of speed 1: seconds if measured, else bytes that a decode step reads."""
        return self._times[layers.end] - self._times[layers.start]

    def head_time(self, layers: LayerRange) -> float:
        """Cost, in the same unit, of what is behind the layers on the last stage: 0 on all others."""
        if layers.end < self.num_layers:
            return 0.0
        if self.layer_seconds is not None:
            return self.last_seconds
        return float(self.last_bytes if self.last_work is None else self.last_work)

    def decode_time(self, layers: LayerRange) -> float:
        """Cost of one decode step, in the same unit."""
        return self.prefill_time(layers) + self.head_time(layers)

    @cached_property
    def _sizes(self) -> list[int]:
        return list(accumulate(self.layer_bytes, initial=0))

    @cached_property
    def _times(self) -> list[float]:
        costs: Sequence[float] = self.layer_seconds or self.layer_work or self.layer_bytes
        return [0.0, *accumulate(float(cost) for cost in costs)]


@dataclass(frozen=True)
class NodeResources:
    """A node as the planner sees it.  `speed` is relative to the other nodes; `memory_bytes` None: no limit."""

    name: str
    memory_bytes: int | None = None
    speed: float = 1.0

    def __post_init__(self) -> None:
        if not self.speed > 0:
            raise ValueError(f"The speed of node {self.name} is {self.speed}; it must be above 0.")


@dataclass(frozen=True)
class StagePlan:
    """One stage.  The parts are those of its time in the time of all stages, from 0 to 1."""

    node: str
    layers: LayerRange
    parameter_bytes: int
    kv_bytes_per_token: int | None
    decode_part: float  # of a decode step
    prefill_part: float  # of a prefill chunk


@dataclass(frozen=True)
class Plan:
    """Stages in rank order."""

    stages: tuple[StagePlan, ...] = field(default=())

    @property
    def ranges(self) -> tuple[LayerRange, ...]:
        return tuple(stage.layers for stage in self.stages)
