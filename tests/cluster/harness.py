"""A cluster for tests: real ranks through launcher.job, on free ports, with a configuration folder of its own.

Whoever stops one through `Cluster.stop` also learns that nothing of it is left: no process, no port.
"""

from __future__ import annotations

import ctypes.util
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import httpx
import psutil
import yaml
from typing_extensions import Self

ROOT = Path(__file__).parents[2]
HOST = "127.0.0.1"
MODEL = "smollm2-135m"

START_DEADLINE = 120.0  # seconds; a start takes some 6 on two idle cores
STOP_DEADLINE = 30.0
ANSWER_DEADLINE = 120.0
POLL = 0.1

# Below the ports that Linux and macOS give to outgoing connections, which come and go during a test.
PORT_BLOCKS = range(10_000, 32_000, 50)


def free_ports(count: int) -> list[int]:
    """Consecutive ports on which nobody listens: MLX's ring wants them so."""
    for first in random.sample(PORT_BLOCKS, len(PORT_BLOCKS)):
        ports = list(range(first, first + count))
        if not taken(ports):
            return ports
    raise AssertionError(f"no {count} consecutive ports are free")


def taken(ports: Sequence[int]) -> list[int]:
    """Those of `ports` on which somebody listens."""
    return [port for port in ports if not _can_listen(port)]


def _can_listen(port: int) -> bool:
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind((HOST, port))
            sock.listen()
        except OSError:
            return False
    return True


def is_running(pid: int) -> bool:
    """Whether a process with this id exists and has not ended."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def wait_until(condition: Callable[[], bool], what: str, deadline: float = ANSWER_DEADLINE) -> None:
    """Poll `condition` until it holds; fails naming `what`."""
    end = time.monotonic() + deadline
    while not condition():
        assert time.monotonic() < end, f"{what}: not within {deadline:g} s"
        time.sleep(POLL)


def environment(extra: Mapping[str, str]) -> dict[str, str]:
    """This process's, without settings of a cluster, and with OpenBLAS as scripts/env.sh has it."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("MLXC_") or name == "MLXC_CACHE_DIR"
    }
    if sys.platform == "linux" and "LD_PRELOAD" not in kept:
        kept["LD_PRELOAD"] = ctypes.util.find_library("openblas") or ""
    return kept | {"OPENBLAS_NUM_THREADS": "1"} | extra


@dataclass(frozen=True)
class Spec:
    """What to start."""

    ranks: int = 3
    backend: str = "ring"
    plain: bool = False  # without mlx.launch, as `python -m server` alone
    named: int | None = None  # how many of the ranks nodes.yaml names; None: all
    node: Mapping[str, Any] = field(default_factory=dict)  # more keys for every named node
    models: Mapping[str, Any] | None = None  # models.yaml
    settings: Sequence[str] = ()  # for --set
    arguments: Sequence[str] = ()  # more arguments of the server
    env: Mapping[str, str] = field(default_factory=dict)
    command: Sequence[str] = (sys.executable, "-m", "server")
    bare: bool = False  # the command takes no arguments of a server


@dataclass(frozen=True)
class Ports:
    """Where everything of one cluster listens."""

    gateway: int
    coordinator: int
    nodes: tuple[tuple[int, int, int], ...]  # inference, frames, health of the named nodes
    ring: tuple[int, ...]

    @classmethod
    def free(cls, named: int, ranks: int) -> Ports:
        ports = iter(free_ports(2 + 3 * named + ranks))
        gateway, coordinator = next(ports), next(ports)
        nodes = tuple((next(ports), next(ports), next(ports)) for _ in range(named))
        return cls(gateway, coordinator, nodes, tuple(ports))

    @property
    def all(self) -> list[int]:
        of_nodes = [port for node in self.nodes for port in node]
        return [self.gateway, self.coordinator, *of_nodes, *self.ring]


class Cluster:
    """One job.  `start`, then `wait_ready` or `wait_ended`; `stop` at the end."""

    def __init__(self, spec: Spec, folder: Path, ports: Ports | None = None) -> None:
        self.spec = spec
        named = spec.ranks if spec.named is None else spec.named
        self.ports = ports or Ports.free(named, spec.ranks)
        self.folder = folder
        self.log_path = folder / "log.txt"
        self.process: subprocess.Popen[bytes] | None = None
        self.pids: list[int] = []
        folder.mkdir(parents=True, exist_ok=True)
        self._write_config()

    @property
    def url(self) -> str:
        return f"http://{self.address(0)}:{self.ports.gateway}"

    def address(self, rank: int) -> str:
        """Where the node of `rank` is reached."""
        return HOST

    @property
    def log(self) -> str:
        return self.log_path.read_text(errors="replace")

    @cached_property
    def http(self) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=ANSWER_DEADLINE)

    # life

    def start(self) -> Self:
        with self.log_path.open("wb") as output:
            self.process = subprocess.Popen(
                self._command(),
                cwd=ROOT,
                env=environment(self.spec.env),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        return self

    def wait_ready(self) -> Self:
        """Fails with the log when the job ends, or is not ready within START_DEADLINE."""
        try:
            wait_until(self._is_ready, "ready", START_DEADLINE)
        except AssertionError as error:
            self.kill()
            raise AssertionError(f"{error}\n{self.log}") from None
        self.pids = [rank["pid"] for rank in self.cluster()["ranks"]]
        return self

    def wait_ended(self, deadline: float = START_DEADLINE) -> int:
        """The exit status of a job that ends by itself."""
        assert self.process
        try:
            return self.process.wait(deadline)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"still running after {deadline:g} s\n{self.log}") from None

    def stop(self) -> None:
        """Ctrl-C; asserts an orderly end that leaves nothing."""
        self.http.close()
        self.interrupt()
        assert self.wait_ended(STOP_DEADLINE) == 0, self.log
        self.assert_nothing_left()

    def interrupt(self) -> None:
        """Ctrl-C"""
        assert self.process
        self.process.send_signal(signal.SIGINT)

    def assert_nothing_left(self) -> None:
        """No rank runs and no port is taken."""
        left = [pid for pid in self.pids if is_running(pid)]
        assert not left, f"ranks {left} still run\n{self.log}"
        assert not taken(self.ports.all), f"ports {taken(self.ports.all)} are taken\n{self.log}"

    def kill(self) -> None:
        """End whatever is left, without any assertion; for the cleanup of failed tests."""
        if self.process is None or self.process.poll() is not None:
            return
        self.interrupt()
        try:
            self.process.wait(STOP_DEADLINE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    # what it says

    def cluster(self) -> dict[str, Any]:
        """GET /v1/cluster"""
        return self._get(f"{self.url}/v1/cluster")

    def health(self, rank: int) -> dict[str, Any]:
        """GET /health of a node's health port."""
        return self._get(f"http://{self.address(rank)}:{self.ports.nodes[rank][2]}/health")

    def sequences(self) -> list[int]:
        """Sequences that each rank holds, by its health port."""
        return [self.health(rank)["sequences"] for rank in range(len(self.ports.nodes))]

    def complete(self, prompt: Sequence[int], max_tokens: int, **fields: Any) -> dict[str, Any]:
        """The choice of a completion that no end token ends; greedy unless `fields` say otherwise."""
        answer = self.http.post("/v1/completions", json=self.body(prompt, max_tokens, **fields))
        assert answer.status_code == 200, answer.text
        [choice] = answer.json()["choices"]
        return choice

    def body(self, prompt: Sequence[int], max_tokens: int, **fields: Any) -> dict[str, Any]:
        """A body for /v1/completions."""
        return {
            "model": self.model,
            "prompt": list(prompt),
            "max_tokens": max_tokens,
            "temperature": 0,
            "ignore_eos": True,
            **fields,
        }

    @cached_property
    def model(self) -> str:
        return self.cluster()["model"]

    def _get(self, url: str) -> dict[str, Any]:
        answer = self.http.get(url)
        answer.raise_for_status()
        return answer.json()

    def _is_ready(self) -> bool:
        assert self.process
        assert self.process.poll() is None, f"ended with status {self.process.returncode}"
        try:
            return self.http.get("/ready", timeout=5.0).status_code == 200
        except httpx.TransportError:
            return False

    # what it is started with

    def node_name(self, rank: int) -> str:
        return f"n{rank}"

    def _command(self) -> list[str]:
        server = [*self.spec.command]
        if not self.spec.bare:
            server += ["--config", str(self.folder / "config"), *self.spec.arguments]
            server += [word for setting in self.spec.settings for word in ("--set", setting)]
        if self.spec.plain:
            return server
        launcher = [sys.executable, "-m", "launcher.job", *self.place_arguments()]
        launcher += ["--backend", self.spec.backend]
        launcher += ["--starting-port", str(self.ports.ring[0])]
        return [*launcher, "--", *server]

    def place_arguments(self) -> list[str]:
        """The launcher's arguments that say where the ranks run."""
        return ["--ranks", str(self.spec.ranks)]

    def _write_config(self) -> None:
        nodes = {}
        for rank, ports in enumerate(self.ports.nodes):
            place = {"node_id": rank, "host": self.address(rank), "ports": list(ports)}
            nodes[self.node_name(rank)] = {**place, **self.spec.node}
        models = self.spec.models or {"default_model": MODEL, "models": {MODEL: {"source": "demo"}}}
        files = {
            "cluster": {
                "coordinator": {"port": self.ports.coordinator, "health_check_interval": 1},
                "api_gateway": {"port": self.ports.gateway},
                # Whoever runs the tests may have keys of their own.
                "access": {
                    "keys_file": str(self.folder / "keys.json"),
                    "cluster_secret_file": str(self.folder / "cluster-secret"),
                },
            },
            "nodes": {"nodes": nodes} if nodes else {},
            "models": models,
            "network": {"network": {"step_timeout": 60}},
        }
        config = self.folder / "config"
        config.mkdir(exist_ok=True)
        for name, content in files.items():
            (config / f"{name}.yaml").write_text(yaml.safe_dump(content))


def folder_model(folder: Path, **more: Any) -> dict[str, Any]:
    """models.yaml for a model folder."""
    return {"default_model": "m", "models": {"m": {"source": str(folder), **more}}}


def tokens_of(choice: Mapping[str, Any]) -> list[str]:
    """The tokens of a choice asked for with logprobs."""
    return choice["logprobs"]["tokens"]


def events(response: httpx.Response) -> list[Any]:
    """The data of a server-sent stream, parsed, without the final [DONE] that has to be there."""
    lines = [line[6:] for line in response.iter_lines() if line.startswith("data: ")]
    assert lines, "an empty stream"
    assert lines[-1] == "[DONE]", lines[-1]
    return [json.loads(line) for line in lines[:-1]]
