"""The one error of this package, and how a validator says which key it is about."""

from __future__ import annotations

from config.keys import Path


class ConfigError(Exception):
    """A setting can't be used.  The message is one sentence with the place, the key and the value."""


class InvalidSetting(ValueError):
    """Raised inside pydantic validators; `path` is relative to the object being validated."""

    def __init__(self, path: Path, reason: str) -> None:
        self.path = path
        super().__init__(reason)
