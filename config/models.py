"""Models: what config/models.yaml says of each, and how its layers are spread."""

from __future__ import annotations

import os.path
from collections.abc import Mapping
from typing import Annotated, NamedTuple

from pydantic import AfterValidator, Field, model_validator

from config.errors import InvalidSetting
from config.section import Section
from config.values import Auto, Count, Flag, Index, Name, Size, Text

DEMO = "demo"


class LayerRange(NamedTuple):
    """First and last layer, both included, as in the YAML file."""

    first: Index
    last: Index


class Shard(Section):
    layers: LayerRange = Field(
        description="[first, last] layer of the node, both included, from 0."
    )
    estimated_memory: Size | None = Field(
        default=None,
        description='Memory the shard is expected to take, e.g. "2.5GB"; more is logged as a warning.',
    )
    includes_output_head: Flag | None = Field(
        default=None,
        description="Whether the node holds the output head: true only on the last one.",
    )


class ModelConfig(Section):
    name: str = Field(
        default="", exclude=True, description="The model's name: its key in models.yaml."
    )
    source: Annotated[Text, AfterValidator(os.path.expanduser)] = Field(
        description="A folder (with a slash in it, relative to the working directory), a Hugging "
        "Face hub id (owner/name), or demo."
    )
    revision: Text | None = Field(default=None, description="Branch, tag or commit on the hub.")
    total_layers: Count | None = Field(
        default=None,
        description="Layers the model must have; checked against the model when it loads.",
    )
    sharding: Auto[Mapping[Name, Shard]] = Field(
        default=None,
        description="auto: planned from the nodes' memory and speed; else the layers of each node, "
        "the node given by its name or as node_<node_id>.",
    )
    trust_remote_code: Flag = Field(
        default=False, description="Whether Python code that comes with the model may run."
    )
    max_model_len: Count | None = Field(
        default=None,
        description="Longest sequence (prompt + output) in tokens; null: what the model allows.",
    )

    @property
    def origin(self) -> tuple[str, str | None, bool]:
        """What decides which files are read, and how: source, revision, and whether their code is trusted."""
        return self.source, self.revision, self.trust_remote_code

    @model_validator(mode="after")
    def _check_revision(self) -> ModelConfig:
        if self.revision is not None and not is_hub_id(self.source):
            reason = (
                f"only models on the hub (owner/name) have revisions; the source is {self.source}"
            )
            raise InvalidSetting(("revision",), reason)
        return self

    @model_validator(mode="after")
    def _check_sharding(self) -> ModelConfig:
        if self.sharding is not None:
            _check_shards(self.sharding, self.total_layers)
        return self


def _check_shards(shards: Mapping[str, Shard], total_layers: int | None) -> None:
    """The ranges, in order of their layers, cover 0..total_layers-1 without a gap or overlap."""
    if not shards:
        raise InvalidSetting(("sharding",), "names no node; write auto to have the layers planned")
    ordered = sorted(shards.items(), key=lambda item: item[1].layers)
    expected = 0
    for key, shard in ordered:
        path = ("sharding", key, "layers")
        first, last = shard.layers
        if last < first:
            raise InvalidSetting(path, "the last layer lies before the first")
        if first != expected:
            raise InvalidSetting(path, f"should start at layer {expected}, without gap or overlap")
        expected = last + 1
    last_key = ordered[-1][0]
    if total_layers is not None and expected != total_layers:
        reason = f"should end at layer {total_layers - 1}, as total_layers is {total_layers}"
        raise InvalidSetting(("sharding", last_key, "layers"), reason)
    for key, shard in ordered:
        if shard.includes_output_head not in (None, key == last_key):
            raise InvalidSetting(
                ("sharding", key, "includes_output_head"),
                f"the output head belongs to the last shard, {last_key}",
            )


def is_hub_id(source: str) -> bool:
    """Whether a source has the form owner/name.  A folder of that form needs ./ in front."""
    return source.count("/") == 1 and not source.startswith(("/", "~", "."))


def is_source(text: str) -> bool:
    """Whether `text` can stand for a model without an entry in models.yaml."""
    return text == DEMO or "/" in text or text.startswith(("~", "."))


def unlisted_model(source: str, names: Mapping[str, object]) -> ModelConfig:
    """An entry for a bare source, named as clients would: the hub id, or the last part of the path."""
    is_path = source != DEMO and not is_hub_id(source)
    name = os.path.basename(os.path.abspath(source)) if is_path else source
    return ModelConfig(name=source if name in names else name, source=source)
