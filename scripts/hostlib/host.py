"""One test host, and what can be seen and done from outside it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from launcher.scratch import PREFIX

SSH_PORT = 22
LINK = "eth0"
NOBODY = "02:00:00:00:00:00"  # a hardware address that no host has
LISTENING = "0A"  # state of a socket in /proc/net/tcp
POLL = 0.02
DEADLINE = 30.0  # seconds for a command that an idle machine ends in well under one


class HostsError(Exception):
    """A command that makes or changes the hosts has failed; one sentence."""


def run(*words: str) -> str:
    """The output of a short command.  Raises HostsError with its last words."""
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=DEADLINE, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise HostsError(f"{words[0]}: {error}") from error
    if done.returncode:
        said = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        raise HostsError(f"{' '.join(words)}: {said[-1]}")
    return done.stdout


def wait_until(condition: Callable[[], bool], what: str) -> None:
    """Poll `condition` until it holds.  Raises HostsError naming `what`."""
    end = time.monotonic() + DEADLINE
    while not condition():
        if time.monotonic() > end:
            raise HostsError(f"{what}: not within {DEADLINE:g} s")
        time.sleep(POLL)


@dataclass(frozen=True)
class Host:
    """A host by its process 1.  Processes are told by the ids that they have for the tests."""

    name: str
    address: str
    init: int
    folder: Path  # its temporary files and sshd's log

    def command(self, *words: str) -> list[str]:
        """`words` as a command that runs on this host, in the folder of the caller."""
        return ["nsenter", f"--target={self.init}", "--all", f"--wd={os.getcwd()}", *words]

    def run(self, *words: str) -> str:
        return run(*self.command(*words))

    @property
    def temporary(self) -> Path:
        """Its $TMPDIR in sessions of ssh."""
        return self.folder / "tmp"

    def left_files(self) -> list[str]:
        """Temporary files, without those of launchers, which remove what one that was killed has left, and
        without the kernels that MLX has compiled.
        """
        names = {path.name for path in self.temporary.iterdir()} - {"mlx"}
        return sorted(name for name in names if not name.startswith(PREFIX))

    @property
    def processes(self) -> list[psutil.Process]:
        """All that run here, without sshd and its sessions."""
        return [process for process in self._members() if _is_alive(process)]

    @property
    def ranks(self) -> list[psutil.Process]:
        return [process for process in self.processes if is_rank(process)]

    @property
    def listening(self) -> set[int]:
        """TCP ports on which somebody listens, without sshd's."""
        ports = set()
        for table in ("tcp", "tcp6") if _pid_namespace(self.init) else ():
            for line in Path(f"/proc/{self.init}/net/{table}").read_text().splitlines()[1:]:
                _, local, _, state, *_ = line.split()
                if state == LISTENING:
                    ports.add(int(local.rpartition(":")[2], 16))
        return ports - {SSH_PORT}

    def kill_processes(self) -> None:
        for process in self.processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()

    def freeze(self) -> None:
        """Nothing runs any more, sshd neither; the kernel goes on to answer for open ports."""
        self._signal_all(signal.SIGSTOP)

    def thaw(self) -> None:
        self._signal_all(signal.SIGCONT)

    def _signal_all(self, number: signal.Signals) -> None:
        for process in self._members():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(number)

    def connect(self, address: str) -> None:
        """Give the link its address."""
        self._ip("address", "add", f"{address}/24", "dev", LINK)
        self._ip("link", "set", LINK, "up")

    @contextlib.contextmanager
    def sees(self, file: Path, content: str) -> Iterator[None]:
        """Let a file have other content on this host alone."""
        other = self.temporary / f"other-{file.name}"
        other.write_text(content)
        self.run("mount", "--bind", str(other), str(file))
        try:
            yield
        finally:
            self.run("umount", str(file))
            other.unlink()

    def silence(self, others: Sequence[Host]) -> None:
        """What this host sends to `others` goes to nobody from now on, without an error."""
        for other in others:
            entry = (other.address, "lladdr", NOBODY, "dev", LINK, "nud", "permanent")
            self._ip("neigh", "replace", *entry)

    def end_silence(self, others: Sequence[Host]) -> None:
        for other in others:
            self._ip("neigh", "del", other.address, "dev", LINK)

    def _ip(self, *words: str) -> None:
        run("nsenter", f"--target={self.init}", "--net", "ip", *words)

    def _members(self) -> list[psutil.Process]:
        own = _pid_namespace(self.init)
        found = []
        for pid in psutil.pids() if own else ():
            with contextlib.suppress(psutil.NoSuchProcess):
                if _pid_namespace(pid) == own:
                    found.append(psutil.Process(pid))
        return found


def _pid_namespace(pid: int) -> str:
    """Empty for a process that has ended."""
    try:
        return os.readlink(f"/proc/{pid}/ns/pid")
    except OSError:
        return ""


def _is_alive(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE and not process.name().startswith("sshd")
    except psutil.NoSuchProcess:
        return False


def is_rank(process: psutil.Process) -> bool:
    """Whether it is one; who only waits to be one has no part in any network."""
    module = _words(process)[1:3]
    return module == ["-m", "server"] or (module == ["-m", "server.standby"] and _connects(process))


def _connects(process: psutil.Process) -> bool:
    if sys.platform != "linux":
        return bool(process.net_connections())
    # psutil does not see the sockets of other network namespaces.
    with contextlib.suppress(OSError):  # it has ended
        for descriptor in Path(f"/proc/{process.pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):
                if str(descriptor.readlink()).startswith("socket:"):
                    return True
    return False


def _words(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        return []
