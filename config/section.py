"""Base of every part of the configuration."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict
from pydantic.config import JsonDict

# Given as `json_schema_extra`: the key can be changed while the program runs.
DYNAMIC: JsonDict = {"dynamic": True}


class Section(BaseModel):
    """Immutable; a key that is not declared is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")
