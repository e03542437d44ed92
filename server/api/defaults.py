"""Sampling as the model's author recommends it, for requests that don't say."""

from __future__ import annotations

import json
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from pipeline.errors import CheckpointError

FILE = "generation_config.json"


class SamplingDefaults(BaseModel):
    """Values of generation_config.json; what it leaves out is as OpenAI has it."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    temperature: float = Field(default=1.0, ge=0, allow_inf_nan=False)
    top_p: float = Field(default=1.0, ge=0, le=1)
    top_k: int = Field(default=0, ge=-1)
    min_p: float = Field(default=0.0, ge=0, le=1)
    repetition_penalty: float = Field(default=1.0, ge=0.01, le=100)

    @field_validator("*", mode="before")
    @classmethod
    def _null_is_absent(cls, value: object, info: object) -> object:
        name = getattr(info, "field_name", "")
        return cls.model_fields[name].default if value is None else value


def read_defaults(folder: Path) -> SamplingDefaults:
    """The defaults of the model in `folder`; OpenAI's where it has no generation_config.json.

    Raises CheckpointError naming file, key and value.
    """
    path = folder / FILE
    if not path.exists():
        return SamplingDefaults()
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return SamplingDefaults.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"])) or "it"
        message = f"{path}: {key} = {first['input']!r}: {first['msg']}."
        raise CheckpointError(message) from error
    except OSError as error:
        raise CheckpointError(f"{path} can't be read: {error.strerror}.") from error
    except ValueError as error:
        raise CheckpointError(f"{path} is not valid JSON: {error}.") from error
