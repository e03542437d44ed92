"""What the launcher needs to know of an mlx.launch hostfile."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

LOCAL = "127.0.0.1"  # the one name mlx.launch starts without ssh


class HostfileError(Exception):
    """The hostfile can't be read; the message names it and says what is wrong."""


@dataclass(frozen=True)
class Hostfile:
    """The ssh name of each rank's host in rank order, and the backend ("" when none is named)."""

    hosts: tuple[str, ...]
    backend: str = ""

    @property
    def is_local(self) -> bool:
        return all(host == LOCAL for host in self.hosts)


def read_hostfile(path: Path) -> Hostfile:
    """Read a hostfile in either of mlx.launch's forms: a list of hosts, or an object with `hosts`."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise HostfileError(f"{path}: can't be read: {error.strerror}") from error
    except ValueError as error:
        raise HostfileError(f"{path}: not valid JSON: {error}") from error
    fields = content if isinstance(content, dict) else {"hosts": content}
    hosts, backend = fields.get("hosts"), fields.get("backend", "")
    if not isinstance(hosts, list) or not hosts:
        raise HostfileError(f"{path}: hosts must be a list of at least one host, not {hosts!r}")
    if not isinstance(backend, str):
        raise HostfileError(f"{path}: backend must be a name, not {backend!r}")
    return Hostfile(tuple(_ssh_name(path, rank, host) for rank, host in enumerate(hosts)), backend)


def _ssh_name(path: Path, rank: int, host: object) -> str:
    name = host.get("ssh") if isinstance(host, dict) else None
    if not isinstance(name, str) or not name:
        raise HostfileError(f'{path}: hosts[{rank}] needs "ssh": a host name, and is {host!r}')
    return name


def local_hostfile(ranks: int) -> str:
    """The content of a hostfile that runs `ranks` ranks on this machine."""
    return json.dumps([{"ssh": LOCAL, "ips": [LOCAL]} for _ in range(ranks)])
