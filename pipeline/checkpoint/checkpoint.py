"""A model on disk or on the hub: what it is, what it costs, and the stages made from it."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten, tree_map
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.utils import load_config

from pipeline.checkpoint.containment import unreadable
from pipeline.checkpoint.costs import kv_bytes_per_token, measure_costs
from pipeline.checkpoint.header import files_of_tensors
from pipeline.checkpoint.hub import HubRepository
from pipeline.checkpoint.progress import Meter, Progress, silent
from pipeline.checkpoint.provenance import trace
from pipeline.checkpoint.source import Folder, Source
from pipeline.checkpoint.weightless import (
    CONFIG_FAULTS,
    Classes,
    Config,
    LazyModel,
    WeightsNeeded,
    build,
    model_classes,
)
from pipeline.errors import CheckpointError
from pipeline.plan import LayerRange, ModelCosts
from pipeline.split import Blueprint, Stage, probe

# Evaluated at once: bounds what stacking and converting hold besides the result.
GROUP_BYTES = 128 << 20

_LENGTH_KEYS = (
    "max_position_embeddings",
    "n_positions",
    "max_seq_len",
    "max_sequence_length",
    "model_max_length",
    "seq_length",
    "n_ctx",
)

_LAYER_KEYS = ("num_hidden_layers", "num_layers", "n_layers", "n_layer")


@dataclass(frozen=True)
class _Layout:
    """What one lazy instance of the model tells.  `files`: which weight files each parameter is made from."""

    blueprint: Blueprint
    costs: ModelCosts
    files: Mapping[str, frozenset[str]]
    vocab_size: int


class Checkpoint:
    """The files of one model, and what is known without reading its weights.

    `path`: folder of config.json and the tokenizer.
    `config`: as mlx-lm reads it, with the end-of-sequence tokens of generation_config.json.
    """

    def __init__(
        self, source: Source, config: Config, classes: Classes, progress: Progress = silent
    ) -> None:
        """`progress`: of what is fetched before it is known which layers are wanted."""
        self._source, self._classes, self.config = source, classes, config
        self._progress = progress

    @classmethod
    def open(
        cls,
        source: str | Path,
        revision: str | None = None,
        trust_remote_code: bool = False,
        progress: Progress | None = None,
    ) -> Checkpoint:
        """The model in the folder or hub repository (owner/name) `source`; no weights are read or downloaded.

        Raises ModelNotFound, CheckpointError for files that are missing or broken, UnsupportedModel.
        """
        name = str(source)
        files: Source = (
            Folder.open(name)
            if _is_folder(name)
            else HubRepository.open(name, revision, trust_remote_code, progress or silent)
        )
        config = _read_config(files.path)
        classes = model_classes(files.path, config, trust_remote_code)
        return cls(files, config, classes, progress or silent)

    @property
    def path(self) -> Path:
        return self._source.path

    @cached_property
    def fingerprint(self) -> str:
        """Equal on all nodes that hold the same model, from a folder or from the hub.

        Covers the config and the name, dtype and shape of every tensor, but not their values: for
        these all files would have to be read.
        """
        table = sorted(
            (name, info.dtype, info.shape)
            for header in self._source.headers.values()
            for name, info in header.tensors.items()
        )
        text = json.dumps([self.config, table], sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def num_layers(self) -> int:
        """Raises what `blueprint` raises."""
        return self._layout.blueprint.num_layers

    @property
    def max_model_len(self) -> int | None:
        """Longest sequence in tokens that the model was made for; None if its config does not say."""
        for config in _levels(self.config):
            for key in _LENGTH_KEYS:
                if isinstance(value := config.get(key), int) and value > 0:
                    return value
        return None

    @property
    def vocab_size(self) -> int:
        """Entries in a row of logits, which may exceed the tokenizer's.  Raises what `blueprint` raises."""
        return self._layout.vocab_size

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """End-of-sequence tokens named by generation_config.json, else by config.json."""
        value = self.config.get("eos_token_id")
        if isinstance(value, int):
            return (value,)
        return tuple(value) if isinstance(value, list) else ()

    def blueprint(self) -> Blueprint:
        """Raises UnsupportedModel, CheckpointError when weights and config do not fit together."""
        return self._layout.blueprint

    def costs(self) -> ModelCosts:
        """Raises what `blueprint` raises."""
        return self._layout.costs

    def files(self, start: int, end: int) -> frozenset[str]:
        """Weight files that the stage of layers [start, end) needs."""
        names = self._layout.blueprint.parameters(start, end)
        return frozenset().union(*(self._layout.files[name] for name in names))

    def load_stage(self, start: int, end: int, progress: Progress | None = None) -> Stage:
        """Layers [start, end) with their weights in memory; downloads and reads nothing of other stages.

        Raises CheckpointError when a file can't be had or read, ValueError for a range outside of the model.
        """
        progress = progress or silent
        present = self._source.fetch(sorted(self.files(start, end)), progress)
        lazy = self._build(present)
        stage = Stage(lazy.model, self.blueprint(), start, end)
        parameters = _parameters(lazy.model)
        if parameters.keys() != self.blueprint().parameters(start, end):
            odd = sorted(parameters.keys() ^ self.blueprint().parameters(start, end))
            raise CheckpointError(f"{self._source.name} has no weights for {odd[0]!r}.")
        del lazy  # it holds the tensors before `sanitize`, which are not to stay in memory
        self._evaluate(parameters, f"Loading layers {LayerRange(start, end)}", progress)
        return stage

    @cached_property
    def _layout(self) -> _Layout:
        """Built from headers alone, unless the architecture looks at weights to build itself."""
        headers = self._source.headers
        everything = frozenset(headers)
        try:
            lazy, looks_at_weights = self._build({}), False
        except WeightsNeeded:
            lazy = self._build(self._source.fetch(sorted(everything), self._progress))
            looks_at_weights = True
        parameters = _parameters(lazy.model)
        if looks_at_weights:
            files = dict.fromkeys(parameters, everything)
        else:
            files = _files_of_parameters(lazy, parameters, files_of_tensors(headers))
        _forget_weights(lazy.model)
        blueprint = probe(lazy.model)
        caches, logits = _one_token(lazy.model)
        kv = kv_bytes_per_token(blueprint, caches)
        costs = measure_costs(blueprint, parameters, self.config, kv)
        return _Layout(blueprint, costs, files, logits.shape[-1])

    def _build(self, present: Mapping[str, Path]) -> LazyModel:
        return build(self.path, self._source.headers, present, self._classes)

    def _evaluate(self, parameters: dict[str, mx.array], what: str, progress: Progress) -> None:
        meter = Meter(what, sum(array.nbytes for array in parameters.values()), progress)
        for group in _groups(parameters.values()):
            try:
                mx.eval(group)
            except RuntimeError as error:
                raise CheckpointError(
                    f"The weights of {self._source.name} can't be read ({error})."
                ) from error
            meter.add(sum(array.nbytes for array in group))


def _is_folder(name: str) -> bool:
    """A hub id is owner/name; all else, and whatever exists, is a path."""
    return os.path.exists(os.path.expanduser(name)) or name.count("/") != 1 or name[0] in "./~"


def _read_config(path: Path) -> Config:
    file = path / "config.json"
    try:
        config = load_config(path)
    except OSError as error:
        raise unreadable(file, error) from error
    except ValueError as error:
        raise CheckpointError(f"{file} is not valid JSON ({error}); download it again.") from error
    except CONFIG_FAULTS as error:
        raise CheckpointError(f"{file} does not hold a JSON object; download it again.") from error
    if not isinstance(config, dict):
        raise CheckpointError(f"{file} does not hold a JSON object; download it again.")
    for level in _levels(config):
        for key in _LAYER_KEYS:
            if isinstance(value := level.get(key), int) and value < 1:
                raise CheckpointError(
                    f"{file} has {key} {value}; a model needs at least one layer."
                )
    return config


def _levels(config: Config) -> Iterator[Config]:
    """The config itself, and what it says of the language model where that is a part of it."""
    yield config
    text = config.get("text_config")
    if isinstance(text, dict):
        yield text


def _forget_weights(model: Any) -> None:
    """Make every parameter a view of one zero: some architectures look at values in their forward."""

    def zeros(array: mx.array) -> mx.array:
        return mx.broadcast_to(mx.zeros((), array.dtype), array.shape)

    model.update(tree_map(zeros, model.parameters()))


def _one_token(model: Any) -> tuple[list[Any], mx.array]:
    """The caches of the whole model after a forward of one token, and the logits [1, 1, V]; all lazy."""
    caches: list[Any] = make_prompt_cache(model)
    return caches, model(mx.zeros((1, 1), mx.int32), cache=caches)


def _parameters(model: Any) -> dict[str, mx.array]:
    return dict(tree_flatten(model.parameters()))


def _files_of_parameters(
    lazy: LazyModel, parameters: Mapping[str, mx.array], file_of: Mapping[str, str]
) -> dict[str, frozenset[str]]:
    tensors = trace(lazy.tensors, parameters)
    return {name: frozenset(file_of[tensor] for tensor in tensors[name]) for name in parameters}


def _groups(arrays: Iterable[mx.array]) -> Iterator[list[mx.array]]:
    group: list[mx.array] = []
    size = 0
    for array in arrays:
        group.append(array)
        size += array.nbytes
        if size >= GROUP_BYTES:
            yield group
            group, size = [], 0
    if group:
        yield group
