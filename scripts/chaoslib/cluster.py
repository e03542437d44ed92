"""The cluster that faults are done to: the supervised launcher with its ranks, on this machine."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import psutil
import yaml

from benchlib.ports import HOST, free_ports, is_free
from benchlib.servers import is_alive
from hostlib.host import is_rank

ROOT = Path(__file__).parents[2]
MODEL = "chaos"
LOG = "log.txt"
NAMES = ("mini1", "mini2", "master")
START_DEADLINE = 180.0  # seconds until the cluster serves
RECOVERY_DEADLINE = 180.0  # until it serves again after a fault
STOP_DEADLINE = 60.0
ANSWER_DEADLINE = 20.0  # of one question to it
POLL = 0.05


class ClusterFailed(Exception):
    """The cluster did not start, recover or stop; the message has the end of its log."""


class Cluster:
    """Three nodes, each with one rank."""

    def __init__(
        self,
        folder: Path,
        model: Path,
        environment: dict[str, str],
        settings: Sequence[str],
        backend: str = "ring",
    ) -> None:
        self.folder, self.model, self.environment = folder, model, environment
        self.settings, self.backend = settings, backend
        self.credentials: dict[str, str] = {}  # headers, where keys are asked for
        self._process: subprocess.Popen[bytes] | None = None
        self.gateway, self.coordinator, *rest = self._ports(2 + 4 * len(NAMES))
        self.node_ports = [rest[3 * n : 3 * n + 3] for n in range(len(NAMES))]
        self.ring_port = rest[3 * len(NAMES)]
        self.log_path = folder / LOG

    # where it runs

    def _ports(self, count: int) -> list[int]:
        return free_ports(count)

    def address(self, node: int) -> str:
        return HOST

    def place_arguments(self) -> list[str]:
        """The launcher's arguments that say on which hosts."""
        return ["--ranks", str(len(NAMES))]

    def command(self, *words: str) -> list[str]:
        """`words` as they run where the launcher does."""
        return list(words)

    def processes(self) -> list[psutil.Process]:
        """The launcher and all that it has started, wherever that is."""
        assert self._process
        launcher = psutil.Process(self._process.pid)
        return [launcher, *filter(is_alive, launcher.children(recursive=True))]

    # life

    @property
    def url(self) -> str:
        return f"http://{self.address(0)}:{self.gateway}"

    def start(self) -> None:
        """Start it and wait until it serves.  Raises ClusterFailed."""
        self._write_config()
        with self.log_path.open("wb") as log:
            self._process = subprocess.Popen(
                self.command(sys.executable, "-m", "launcher", *self._launcher_arguments()),
                cwd=ROOT,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.wait(self.is_ready, "it does not serve", START_DEADLINE)

    def stop(self) -> None:
        """Ctrl-C.  Raises ClusterFailed unless it ends well and leaves nothing."""
        assert self._process
        left = self.processes()
        self.launcher.send_signal(signal.SIGINT)
        try:
            status = self._process.wait(STOP_DEADLINE)
        except subprocess.TimeoutExpired:
            self.kill()
            raise self.failed(
                f"it still runs {STOP_DEADLINE:g} s after it was asked to stop"
            ) from None
        if status:
            raise self.failed(f"it ended with status {status}")
        self.wait(
            lambda: not any(map(is_alive, left)), "processes are left", STOP_DEADLINE, ended=True
        )
        if taken := self.taken_ports():
            raise self.failed(f"ports {taken} are still taken")
        if files := self.left_files():
            raise self.failed(f"files are left: {', '.join(files)}")

    def kill(self) -> None:
        """End whatever is left."""
        if self._process is None:
            return
        left = self.processes() if self._process.poll() is None else []
        for process in left:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self._process.wait()

    def taken_ports(self) -> list[int]:
        """Those of the cluster's ports on which somebody listens."""
        all_ports = [self.gateway, self.coordinator, *(p for n in self.node_ports for p in n)]
        return [port for port in all_ports if not is_free(port)]

    def left_files(self) -> list[str]:
        """Temporary ones of its ranks, where it can be told that they are."""
        return []

    # what it is

    @property
    def launcher(self) -> psutil.Process:
        assert self._process
        return psutil.Process(self._process.pid)

    def ranks(self) -> dict[int, psutil.Process]:
        """The processes of the ranks that run."""
        rank_of = {node["name"]: node["rank"] for node in self.status()["nodes"]}
        found = {}
        for process in self.processes():
            with suppress(psutil.NoSuchProcess):
                node = self._node_of(process) if role(process) == "rank" else None
                if node is not None and rank_of[NAMES[node]] is not None:
                    found[rank_of[NAMES[node]]] = process
        return found

    def _node_of(self, rank: psutil.Process) -> int | None:
        """Whose ports it has opened; its environment may be of the time when it waited to be a rank."""
        ports = {c.laddr.port for c in rank.net_connections("tcp") if c.status == "LISTEN"}
        return next((n for n, own in enumerate(self.node_ports) if ports & set(own)), None)

    def mlx_launch(self) -> psutil.Process | None:
        """The process that started the ranks: those who wait for the next launch came later."""
        found = [process for process in self.processes() if role(process) == "mlx.launch"]
        return min(found, key=psutil.Process.create_time, default=None)

    def is_ready(self) -> bool:
        """Whether a new request would be served now."""
        try:
            return httpx.get(f"{self.url}/ready", timeout=ANSWER_DEADLINE).status_code == 200
        except httpx.TransportError:
            return False

    def is_settled(self) -> bool:
        """Whether all that is to wait for the next launch does."""
        return self.status()["standby"]["state"] in ("warm", "off")

    def status(self) -> dict[str, Any]:
        """The launcher's, as `python -m launcher status --json` shows it.  Raises ClusterFailed."""
        try:
            url = f"{self.url}/admin/status"
            answer = httpx.get(url, headers=self.credentials, timeout=ANSWER_DEADLINE)
            found: dict[str, Any] = answer.raise_for_status().json()
        except httpx.HTTPError as error:
            raise self.failed(f"its status can't be had: {error}") from error
        return found

    def recoveries(self) -> int:
        """How often it has recovered so far."""
        return int(self.status()["recoveries_total"])

    def layers(self) -> dict[str, tuple[int, int]]:
        """The layers of each node that takes part."""
        nodes = self.status()["nodes"]
        return {n["name"]: (n["layers"][0], n["layers"][1]) for n in nodes if n["layers"]}

    def make_whole(self) -> None:
        """Let nodes that were kept out, or were away, take part again, as an operator would."""
        if len(self.layers()) == len(NAMES):
            return
        self.wait(self._all_reachable, "a node can't be reached", RECOVERY_DEADLINE)
        httpx.post(f"{self.url}/admin/restart", timeout=ANSWER_DEADLINE).raise_for_status()
        self.wait(
            lambda: self.is_ready() and len(self.layers()) == len(NAMES),
            "a node still takes no part",
            RECOVERY_DEADLINE,
        )

    def _all_reachable(self) -> bool:
        return all(node["reachable"] for node in self.status()["nodes"])

    def sequences(self) -> int:
        """Sequences that all nodes together hold, by their health ports."""
        total = 0
        for node, ports in enumerate(self.node_ports):
            with suppress(httpx.TransportError):
                url = f"http://{self.address(node)}:{ports[2]}/health"
                total += httpx.get(url, timeout=ANSWER_DEADLINE).json()["sequences"]
        return total

    def wait(
        self, condition: Callable[[], bool], what: str, deadline: float, ended: bool = False
    ) -> None:
        """Poll until `condition`.  Raises ClusterFailed, also when the launcher ends, unless it is `ended`."""
        assert self._process
        end = time.monotonic() + deadline
        while not condition():
            if not ended and self._process.poll() is not None:
                raise self.failed(f"it ended with status {self._process.returncode}")
            if time.monotonic() > end:
                raise self.failed(f"{what} after {deadline:g} s")
            time.sleep(POLL)

    def failed(self, what: str) -> ClusterFailed:
        lines = self.log_path.read_text(errors="replace").splitlines()[-40:]
        return ClusterFailed("\n".join([what, *lines]))

    # what it is started with

    def _launcher_arguments(self) -> list[str]:
        arguments = [*self.place_arguments(), "--backend", self.backend]
        arguments += ["--starting-port", str(self.ring_port)]
        arguments += ["--config", str(self.folder / "config")]
        return arguments + [word for setting in self.settings for word in ("--set", setting)]

    def _write_config(self) -> None:
        nodes = {
            name: {"node_id": n, "host": self.address(n), "ports": self.node_ports[n]}
            for n, name in enumerate(NAMES)
        }
        files = {
            "cluster": {
                "coordinator": {"port": self.coordinator},
                "api_gateway": {"port": self.gateway, "host": self.address(0)},
                # A fault hits the same node more often than in life, and another one while it is kept out.
                "launcher": {"hold_initial": 1, "hold_max": 4, "forgive_after": 30},
                "access": {"enabled": False},  # whatever keys this user has
            },
            "nodes": {"nodes": nodes},
            "models": {"default_model": MODEL, "models": {MODEL: {"source": str(self.model)}}},
        }
        config = self.folder / "config"
        config.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            (config / f"{name}.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")


def role(process: psutil.Process) -> str:
    """What a process is for: `launcher`, `mlx.launch`, `rank`, `standby`, or its program's name."""
    try:
        words = process.cmdline()
    except psutil.NoSuchProcess:
        return "ended"
    if is_rank(process):
        return "rank"
    modules = {
        "server.standby": "standby",
        "launcher": "launcher",
        "launcher.mlx_launch": "mlx.launch",
    }
    if words[1:2] == ["-m"] and words[2] in modules:
        return modules[words[2]]
    return Path(words[0]).name if words else process.name()
