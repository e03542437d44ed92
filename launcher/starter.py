"""Starts epochs: by those who wait on their nodes, where they do, else with new processes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from config import Config, Settings
from launcher.epoch import Patience, RunningEpoch
from launcher.job import Job, JobSpec
from launcher.logs import LogStream
from launcher.nodes import Cluster
from launcher.probe import own_address
from launcher.standby import Standby
from launcher.standby_grounds import Grounds


@dataclass(frozen=True)
class Launch:
    """What was asked for on the command line."""

    hostfile: Path
    backend: str
    starting_port: int
    grace: float
    server: tuple[str, ...]  # the command of a rank with the user's arguments
    load: Callable[[Sequence[str]], Settings]  # the settings, with more `--set` arguments
    folder: Path  # of the YAML files that `load` reads
    standby: tuple[str, ...] = ()  # the command of one who waits to be a rank, likewise


class Starter:
    """Numbers the epochs, too."""

    def __init__(
        self, launch: Launch, config: Config, cluster: Cluster, logs: LogStream, scratch: Path
    ) -> None:
        """`scratch`: a folder for hostfiles."""
        self._launch, self._cluster, self._logs, self._scratch = launch, cluster, logs, scratch
        self._patience = _patience_of(config)
        self._count = 0
        self.standby = Standby(self._grounds(config), config.launcher.standby_after, logs)

    def use(self, config: Config, cluster: Cluster) -> None:
        """Start others from now on; those who wait are ended if they would be others, too."""
        self._patience, self._cluster = _patience_of(config), cluster
        self.standby.use(self._grounds(config), config.launcher.standby_after)

    def start(
        self, order: Sequence[str], model: Sequence[str], changed: Callable[[], None]
    ) -> RunningEpoch:
        """An epoch over these nodes, the leader first; `model`: arguments that name it.  Raises ConfigError."""
        self._count += 1
        leader, *_ = members = self._cluster.named(order)
        seen_as = None if leader.is_local else own_address(leader.host)
        arguments, note = self._cluster.arguments(order, self._launch.load, seen_as)
        if note:
            self._logs.say(note)
        arguments = (*arguments, *model)
        taken = self.standby.take(self._count, order, arguments)
        job, running = (self._cold(order, arguments), None) if taken is None else taken
        self._logs.say(
            "starting",
            epoch=self._count,
            leader=leader.name,
            nodes=", ".join(order),
            standby=taken is not None,
        )
        return RunningEpoch(self._count, members, job, self._patience, changed, running)

    def _cold(self, order: Sequence[str], arguments: Sequence[str]) -> Job:
        path = self._scratch / f"hostfile-{self._count}.json"
        path.write_text(self._cluster.hostfile(order), encoding="utf-8")
        return Job(self._spec((*self._launch.server, *arguments), path), self._logs)

    def _grounds(self, config: Config) -> Grounds | None:
        """None where nobody is to wait: as configured, or since mpirun gives out the ranks at its start."""
        launch = self._launch
        if not (config.launcher.standby and launch.standby and launch.backend == "ring"):
            return None
        spec = self._spec(launch.standby, self._scratch / "standby.json")
        return Grounds(spec, self._cluster, config.model)

    def _spec(self, command: tuple[str, ...], hostfile: Path) -> JobSpec:
        launch = self._launch
        return JobSpec(command, hostfile, launch.backend, launch.starting_port, launch.grace)


def _patience_of(config: Config) -> Patience:
    coordinator = config.coordinator
    silence = coordinator.health_check_interval * coordinator.failure_threshold
    return Patience(silence, config.launcher.start_timeout)
