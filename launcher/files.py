"""The hostfile and the settings on disk, which may change while the launcher runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from config import Config, ConfigError, Settings
from config.sources import FILES
from launcher.hostfile import HostfileError
from launcher.nodes import Cluster

OWN_SECTIONS = ("api_gateway", "tls", "access", "observe")
"""Sections by which the launcher itself has opened its ports and its log: these it does not take up again."""


UNUSABLE = (ConfigError, HostfileError)
State = tuple[int, int, int] | None  # of a file


@dataclass(frozen=True)
class Found:
    """What they say.  `kept`: sections that differ from those with which the launcher was started."""

    config: Config
    cluster: Cluster
    kept: tuple[str, ...] = ()


class Files:
    """Reads them again where they differ from what was read last."""

    def __init__(
        self,
        config: Config,
        cluster: Cluster,
        load: Callable[[Sequence[str]], Settings],
        hostfile: Path,
        folder: Path,
    ) -> None:
        """`folder`: of the YAML files."""
        self._first = config
        self._config, self._cluster = config, cluster
        self._load, self._hostfile = load, hostfile
        self._paths = [hostfile, *(folder / name for name in FILES)]
        self._seen = self._state()

    def changed(self) -> Found | None:
        """What they say now; None if that is nothing new.  Raises what `read` raises, once for each change."""
        return None if self._state() == self._seen else self.read()

    def read(self) -> Found | None:
        """Likewise, though no file may have been written since.

        Raises one of UNUSABLE if they can't be used.
        """
        self._seen = self._state()
        config = self._load(()).config
        cluster = Cluster.of(config, self._hostfile)
        if (config, cluster) == (self._config, self._cluster):
            return None
        self._config, self._cluster = config, cluster
        kept = (s for s in OWN_SECTIONS if getattr(config, s) != getattr(self._first, s))
        return Found(config, cluster, tuple(kept))

    def _state(self) -> tuple[State, ...]:
        return tuple(map(_state_of, self._paths))


def _state_of(path: Path) -> State:
    try:
        found = path.stat()
    except OSError:  # it is told when it is read
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
