"""The hostfile and the settings on disk, which may change while the launcher runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path

from config import Config, ConfigError, Settings
from config.sources import FILES
from launcher.hostfile import HostfileError
from launcher.nodes import Cluster

OWN = ("api_gateway", "tls", "access", "observe", "network", "launcher.log_folder")
"""By which the launcher itself has opened its ports, its log and its links: these it does not take up again."""

UNUSABLE = (ConfigError, HostfileError)
State = tuple[int, int, int] | None  # of a file


@dataclass(frozen=True)
class Found:
    """What they say.  `kept`: of OWN, what differs from that with which the launcher was started."""

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
        kept = (key for key in OWN if attrgetter(key)(config) != attrgetter(key)(self._first))
        return Found(config, cluster, tuple(kept))

    def _state(self) -> tuple[State, ...]:
        return tuple(map(_state_of, self._paths))


def _state_of(path: Path) -> State:
    try:
        found = path.stat()
    except OSError:  # it is told when it is read
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
