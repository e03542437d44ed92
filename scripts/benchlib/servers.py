"""Servers to measure, each started on free ports of this machine and stopped without a trace."""

from __future__ import annotations

import signal
import subprocess
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Protocol

import httpx
import psutil

START_DEADLINE = 180.0  # seconds until the health port answers
STOP_DEADLINE = 30.0
ANSWER_DEADLINE = 10.0  # seconds for one answer of a health port
POLL = 0.1
LAUNCHERS = frozenset({"launcher", "launcher.job"})  # modules
LOG_TAIL = 20  # lines shown of a server that failed


class ServerFailed(Exception):
    """A server did not start, or ended; the message has the end of its log."""


class Server(Protocol):
    """Something with an OpenAI-compatible API.  As a context it is started and stopped."""

    label: str
    url: str  # without /v1
    model: str  # the name requests have to give

    def __enter__(self) -> Server: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...

    def is_healthy(self) -> bool:
        """Whether it can take requests."""
        ...


class External:
    """A server that runs already."""

    def __init__(self, url: str, model: str | None) -> None:
        """`model`: None takes the first one that the server lists.  Raises httpx.HTTPError."""
        self.url = url.rstrip("/").removesuffix("/v1")
        self.label = self.url
        if model is None:
            answer = httpx.get(f"{self.url}/v1/models", timeout=ANSWER_DEADLINE)
            model = str(answer.raise_for_status().json()["data"][0]["id"])
        self.model = model

    def __enter__(self) -> External:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        pass

    def is_healthy(self) -> bool:
        """Taken for granted: which address would tell is not part of the API."""
        return True


class LocalServer:
    """A server as a process, with all processes that it starts."""

    def __init__(
        self,
        label: str,
        command: Sequence[str],
        environment: dict[str, str],
        url: str,
        model: str,
        health_path: str,
        folder: Path,
    ) -> None:
        self.label, self.url, self.model = label, url, model
        self._command, self._environment, self._folder = command, environment, folder
        self._health = url + health_path
        self._process: subprocess.Popen[bytes] | None = None
        self._log = folder / "log.txt"

    def __enter__(self) -> LocalServer:
        try:
            self.start()
        except ServerFailed:
            self.stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Start and wait until its health port says that it is up.  Raises ServerFailed."""
        with self._log.open("wb") as output:
            self._process = subprocess.Popen(
                self._command,
                cwd=Path(__file__).parents[2],
                env=self._environment,
                stdin=subprocess.PIPE,  # left open: at its end mlx.launch would read it without a pause
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        deadline = time.monotonic() + START_DEADLINE
        while not self.is_healthy():
            if self._process.poll() is not None:
                raise self.failed(f"ended with status {self._process.returncode}")
            if time.monotonic() > deadline:
                raise self.failed(f"is not up after {START_DEADLINE:g} s")
            time.sleep(POLL)

    def stop(self) -> None:
        """Ask it to stop; whatever of it is left after STOP_DEADLINE is killed."""
        process, self._process = self._process, None
        if process is None:
            return
        left = descendants(process.pid)
        process.send_signal(signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            process.wait(STOP_DEADLINE if self._stops_by_itself else POLL)
        process.kill()
        process.wait()
        _end(left, signal.SIGTERM)
        _end(left, signal.SIGKILL)
        if process.stdin is not None:
            process.stdin.close()

    @property
    def _stops_by_itself(self) -> bool:
        """The launcher stops its ranks in order; mlx.launch's threads wait for its ranks for ever."""
        return not LAUNCHERS.isdisjoint(self._command)

    def is_healthy(self) -> bool:
        try:
            answer = httpx.get(self._health, timeout=ANSWER_DEADLINE)
        except httpx.TransportError:
            return False
        return answer.status_code == httpx.codes.OK

    def processes(self) -> list[psutil.Process]:
        """The process started and all that came of it, launchers first."""
        if self._process is None:
            return []
        return [psutil.Process(self._process.pid), *descendants(self._process.pid)]

    def failed(self, what: str) -> ServerFailed:
        """An error that says what is wrong and how the log ends."""
        lines = self._log.read_text(errors="replace").splitlines()[-LOG_TAIL:]
        return ServerFailed("\n".join([f"{self.label}: {what}", *lines]))


def descendants(pid: int) -> list[psutil.Process]:
    """All processes that come of one."""
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def role(process: psutil.Process) -> str:
    """What a process of a LocalServer does: `mlx.launch`, `launcher`, `rank N`, `standby N` where it was
    begun as one that waits, or `server` when it is alone.

    Raises psutil.NoSuchProcess.
    """
    command = process.cmdline()
    if not LAUNCHERS.isdisjoint(command):
        return "launcher"
    if any("launcher.mlx_launch" in word or word.endswith("mlx.launch") for word in command):
        return "mlx.launch"
    rank = process.environ().get("MLX_RANK")
    if rank is None:
        return "server"
    return f"standby {rank}" if "server.standby" in command else f"rank {rank}"


def _end(processes: Sequence[psutil.Process], number: signal.Signals) -> None:
    """Send a signal to those that still run, and wait for their end up to STOP_DEADLINE."""
    running = [process for process in processes if is_alive(process)]
    for process in running:
        with suppress(psutil.NoSuchProcess):
            process.send_signal(number)
    deadline = time.monotonic() + STOP_DEADLINE
    while any(map(is_alive, running)) and time.monotonic() < deadline:
        time.sleep(POLL)


def is_alive(process: psutil.Process) -> bool:
    """Whether it has not ended.  One that has ended stays listed until its parent asks for its status."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def scratch_folder() -> tempfile.TemporaryDirectory[str]:
    """For configuration and logs of servers."""
    return tempfile.TemporaryDirectory(prefix="mlx-cluster-bench-")
