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
    """What a hostfile says.

    `hosts` are the ssh names in rank order, `addresses` by which addresses the others reach each of them.
    `variables` are the names of the environment variables it sets for every rank.
    """

    hosts: tuple[str, ...]
    backend: str = ""  # "" when none is named
    addresses: tuple[tuple[str, ...], ...] = ()
    variables: frozenset[str] = frozenset()

    @property
    def ring_ports(self) -> int:
        """How many ports MLX's ring takes: one for each address of each host."""
        return sum(map(len, self.addresses))

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
    names = tuple(_ssh_name(path, rank, host) for rank, host in enumerate(hosts))
    addresses = tuple(
        tuple(_texts(f"{path}: hosts[{r}].ips", h.get("ips", []))) for r, h in enumerate(hosts)
    )
    settings = _texts(f"{path}: envs", fields.get("envs", []))
    variables = frozenset(setting.partition("=")[0] for setting in settings)
    return Hostfile(names, backend, addresses, variables)


def _ssh_name(path: Path, rank: int, host: object) -> str:
    name = host.get("ssh") if isinstance(host, dict) else None
    if not isinstance(name, str) or not name:
        raise HostfileError(f'{path}: hosts[{rank}] needs "ssh": a host name, and is {host!r}')
    return name


def _texts(place: str, value: object) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise HostfileError(f"{place} must be a list of texts, not {value!r}")
    return value


def check_ranks(ranks: int) -> None:
    """Whether so many can be asked for on this machine.  Raises HostfileError."""
    if ranks < 1:
        raise HostfileError(f"--ranks must be at least 1, not {ranks}")


def local_hostfile(ranks: int) -> str:
    """The content of a hostfile that runs `ranks` ranks on this machine.  Raises HostfileError."""
    check_ranks(ranks)
    return json.dumps([{"ssh": LOCAL, "ips": [LOCAL]} for _ in range(ranks)])
