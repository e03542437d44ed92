"""Three hosts on this machine, each with a network, processes, a name and an sshd of its own.

A host is a set of Linux namespaces whose process 1 is sshd. The hosts hang on a bridge in a further network
namespace, and a link leads from there to the tests. All of it lives exactly as long as four processes, which
the kernel ends with the test run, however that ends: nothing is left to tidy up. Only the link has a name
that a second run could meet, and that holds the number of this process.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import psutil

from hostlib.host import DEADLINE, Host, HostsError, run, wait_until

NAMES = ("mini1", "mini2", "master")
PROGRAMS = ("ip", "nsenter", "setpriv", "ssh", "ssh-keygen", "sshd", "unshare")
SEARCH = f"{os.environ.get('PATH', os.defpath)}:/usr/local/sbin:/usr/sbin:/sbin"  # where sshd is
NAMESPACES = ("--mount", "--net", "--pid", "--uts", "--mount-proc")
LIVES = ("setpriv", "--pdeathsig=KILL", "unshare", "--fork", "--kill-child=KILL")

BRIDGE = "bridge"
NETWORK = "198.18"  # kept free for tests of networks (RFC 2544)
TESTS, FIRST_HOST = 1, 11  # last parts of the addresses

SSH_CONFIG = """\
IdentityFile {folder}/key
IdentitiesOnly yes
UserKnownHostsFile {folder}/known_hosts
GlobalKnownHostsFile none
StrictHostKeyChecking yes
"""
SSHD_CONFIG = """\
HostKey {folder}/host_key
AuthorizedKeysFile {folder}/{name}/authorized_keys
AuthenticationMethods publickey
StrictModes no
UsePAM no
PidFile none
SetEnv TMPDIR={folder}/{name}/tmp
"""


def obstacle() -> str:
    """Why hosts can't be made on this machine; empty if they can."""
    if sys.platform != "linux":
        return "network namespaces are a thing of Linux"
    if os.geteuid() != 0:
        return "making network namespaces and running sshd needs root"
    missing = [name for name in PROGRAMS if not shutil.which(name, path=SEARCH)]
    if missing:
        packages = "iproute2, util-linux, openssh-client, openssh-server"
        return f"{', '.join(missing)} not found (packages of Debian: {packages})"
    try:
        run("unshare", *NAMESPACES, "--fork", "true")
    except HostsError as error:
        return f"namespaces are not allowed here: {error}"
    return ""


class Hosts:
    """mini1, mini2 and master, each of which can log in to all of them as the user of the tests."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._stack = ExitStack()
        # The kernel ends a host with the thread that started it, and whoever calls may be in a passing one.
        self._starter = self._stack.enter_context(ThreadPoolExecutor(1))
        self._network = f"{NETWORK}.{_free_network()}"
        self._addresses = {
            name: f"{self._network}.{FIRST_HOST + number}" for number, name in enumerate(NAMES)
        }
        self._switch = 0
        self.hosts: tuple[Host, ...] = ()

    def __enter__(self) -> Hosts:
        with self._stack:
            self._make_keys()
            self._switch = self._live("--net", command=("sleep", "infinity"))
            self._on_switch("link", "add", BRIDGE, "type", "bridge")
            self._on_switch("link", "set", BRIDGE, "up")
            self.hosts = tuple(self._start(name) for name in NAMES)
            self._connect_tests()
            self._stack = self._stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def __getitem__(self, name: str) -> Host:
        return self.hosts[NAMES.index(name)]

    # faults

    def set_link(self, host: Host, up: bool) -> None:
        """Pull the cable of a host, or put it back."""
        self._on_switch("link", "set", "dev", host.name, "up" if up else "down")

    def cut_power(self, name: str) -> None:
        """All that runs on a host is gone, and nobody hears of it: a process that ends would say goodbye."""
        self._on_switch("link", "delete", "dev", name)
        os.kill(self[name].init, signal.SIGKILL)

    def boot(self, name: str) -> None:
        """Start a host again whose power was cut; its files are as they were."""
        started = self._starter.submit(self._start, name).result()
        self.hosts = tuple(started if h.name == name else h for h in self.hosts)

    def part(self, some: Sequence[Host], others: Sequence[Host]) -> None:
        """No packet comes from one side to the other any more; the tests reach both."""
        for one, other in ((some, others), (others, some)):
            for host in one:
                host.silence(other)

    def join(self, some: Sequence[Host], others: Sequence[Host]) -> None:
        """End a parting."""
        for one, other in ((some, others), (others, some)):
            for host in one:
                host.end_silence(other)

    def refuse_login(self, host: Host, refuse: bool) -> None:
        """Whether the key of the tests is unknown to a host."""
        key = "" if refuse else (self.folder / "key.pub").read_text()
        (host.folder / "authorized_keys").write_text(key)

    # making

    def hostfile(self, backend: str = "ring") -> str:
        hosts = [{"ssh": name, "ips": [address]} for name, address in self._addresses.items()]
        return json.dumps({"backend": backend, "envs": [], "hosts": hosts}, indent=2)

    def _make_keys(self) -> None:
        folder = self.folder
        for name in ("key", "host_key"):
            run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", str(folder / name))
        (folder / "ssh").mkdir()
        (folder / "ssh" / "ssh_config").write_text(SSH_CONFIG.format(folder=folder))
        host_key = (folder / "host_key.pub").read_text()
        pairs = self._addresses.items()
        known = "".join(f"{name},{address} {host_key}" for name, address in pairs)
        (folder / "known_hosts").write_text(known)
        names = "".join(f"{address} {name}\n" for name, address in pairs)
        (folder / "hosts").write_text(f"127.0.0.1 localhost\n{names}")

    def _start(self, name: str) -> Host:
        folder = self.folder / name
        (folder / "tmp").mkdir(parents=True, exist_ok=True)
        (folder / "sshd_config").write_text(SSHD_CONFIG.format(folder=self.folder, name=name))
        script = str(Path(__file__).with_name("host.sh"))
        init = self._live(*NAMESPACES, command=(script, name, str(self.folder)))
        host = Host(name, self._addresses[name], init, folder)
        self.refuse_login(host, False)
        self._plug_in(name, "eth0", init)
        host.connect(host.address)
        wait_until(lambda: _is_sshd(init), f"sshd of {name}")
        return host

    def _plug_in(self, name: str, end: str, pid: int) -> None:
        """A cable from the bridge to the network of the process `pid`."""
        number = NAMES.index(name) if name in NAMES else len(NAMES)
        hardware = f"02:00:00:00:01:{number:02x}"  # the same after a boot, so that nobody looks for another
        kind = ("type", "veth", "peer", "name", end, "address", hardware, "netns", str(pid))
        self._on_switch("link", "add", "name", name, *kind)
        self._on_switch("link", "set", "dev", name, "master", BRIDGE, "up")

    def _connect_tests(self) -> None:
        link = f"mlxc{os.getpid()}"
        self._plug_in("tests", link, os.getpid())
        run("ip", "address", "add", f"{self._network}.{TESTS}/24", "dev", link)
        run("ip", "link", "set", link, "up")

    def _on_switch(self, *words: str) -> str:
        return run("nsenter", f"--target={self._switch}", "--net", "ip", *words)

    def _live(self, *namespaces: str, command: Sequence[str]) -> int:
        """The id of a process in new namespaces, which ends at the latest with this one."""
        environment = {**os.environ, "PATH": SEARCH}
        with (self.folder / "namespaces.log").open("ab") as log:
            words = [*LIVES, *namespaces, *command]
            parent = subprocess.Popen(words, env=environment, stderr=log)
        self._stack.callback(_end, parent)
        wait_until(lambda: bool(_children(parent)), f"{command[0]} in new namespaces")
        return _children(parent)[0]


def _free_network() -> int:
    """The third part of addresses that no other run uses: none of its links has an address of it."""
    used = run("ip", "-oneline", "address")
    return random.choice([part for part in range(256) if f" {NETWORK}.{part}." not in used])


def _children(parent: subprocess.Popen[bytes]) -> list[int]:
    assert parent.poll() is None, f"{parent.args!r} ended with status {parent.returncode}"
    return [child.pid for child in psutil.Process(parent.pid).children()]


def _is_sshd(pid: int) -> bool:
    return psutil.Process(pid).name() == "sshd"


def _end(parent: subprocess.Popen[bytes]) -> None:
    """With its process 1 the kernel kills all others of a host, and with the last one goes its network."""
    for child in _children(parent) if parent.poll() is None else ():
        os.kill(child, signal.SIGKILL)
    try:
        parent.wait(DEADLINE)
    finally:
        parent.kill()
