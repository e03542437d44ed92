"""The settings behind GetConfig and SetConfig on rank 0, and their changes on every rank."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from config import ConfigError, Settings
from config.keys import parse_key
from config.lookup import is_dynamic
from config.yaml_text import read_value
from server.rpc.config_store import ConfigEntry

MAX_INTEGER = 2**31 - 1  # what frames and messages can carry of any count


class RuntimeSettings:
    """A ConfigBackend over the settings of this process; `on_change` gets the settings in force."""

    def __init__(self, settings: Settings, on_change: Callable[[Settings], None]) -> None:
        self.settings = settings
        self._on_change = on_change

    def entries(self) -> Sequence[ConfigEntry]:
        return [
            ConfigEntry(row.key, row.value, row.origin, is_dynamic(parse_key(row.key)))
            for row in self.settings.describe()
        ]

    def change(self, changes: Mapping[str, str]) -> Mapping[str, str]:
        """Each key is tried alone first, so that every bad one is named."""
        refused = {
            key: reason
            for key, text in changes.items()
            if (reason := _refusal(self.settings, {key: text}))
        }
        if refused:
            return refused
        together = _refusal(self.settings, changes)
        if together:
            return dict.fromkeys(changes, together)
        self.apply(changes)
        return {}

    def apply(self, changes: Mapping[str, str]) -> None:
        """Take over values as `--set` writes them; what a rank does with a heartbeat's answer.

        Raises ConfigError when they are refused.
        """
        self.settings = changed(self.settings, changes)
        self._on_change(self.settings)


def changed(settings: Settings, changes: Mapping[str, str]) -> Settings:
    """Settings with the dynamic keys of `changes` set.  Raises ConfigError."""
    values = {key: read_value(text, key) for key, text in changes.items()}
    for key, value in values.items():
        if isinstance(value, int) and value > MAX_INTEGER:
            raise ConfigError(f"{key}: the number is above {MAX_INTEGER}.")
    return settings.change(values)


def _refusal(settings: Settings, changes: Mapping[str, str]) -> str:
    try:
        changed(settings, changes)
    except ConfigError as error:
        return str(error)
    except RecursionError:  # of the YAML reader
        return f"{', '.join(changes)}: the value is nested too deeply."
    return ""
