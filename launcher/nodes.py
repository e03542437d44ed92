"""The configured nodes, and what one epoch over some of them needs: a hostfile and settings for its ranks."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from config import Config, ConfigError, NodeConfig, Settings
from config.keys import format_key
from launcher.hostfile import LOCAL, Hostfile, read_hostfile


@dataclass(frozen=True)
class Member:
    """A node, and its entry of the hostfile, which is handed to mlx.launch as it is."""

    node: NodeConfig
    entry: dict[str, Any]

    @property
    def name(self) -> str:
        return self.node.name

    @property
    def ssh(self) -> str:
        """The name mlx.launch logs in to."""
        return str(self.entry["ssh"])

    @property
    def is_local(self) -> bool:
        return self.ssh == LOCAL

    @property
    def host(self) -> str:
        """Where its ports are reached from here: the first address of the ring, else as nodes.yaml has it."""
        ips = self.entry.get("ips")
        if ips:
            return str(ips[0])
        return LOCAL if self.is_local else self.node.host

    @property
    def health_at(self) -> str:
        """Host and port at which it is asked how it is, if it leads."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.node.ports.inference}"


@dataclass(frozen=True)
class Cluster:
    """All nodes in rank order, and the parts of the hostfile that are about all of them."""

    members: tuple[Member, ...]
    common: dict[str, Any]  # backend and envs of the hostfile

    @classmethod
    def of(cls, config: Config, path: Path) -> Cluster:
        """The hosts of the hostfile, each with its node.  Raises HostfileError and ConfigError."""
        hostfile: Hostfile = read_hostfile(path)
        content = json.loads(path.read_text(encoding="utf-8"))
        fields = content if isinstance(content, dict) else {"hosts": content}
        nodes = config.nodes_of(len(hostfile.hosts))
        members = [Member(n, e) for n, e in zip(nodes, fields["hosts"], strict=True)]
        return cls(tuple(members), {key: fields[key] for key in fields if key != "hosts"})

    def named(self, names: Sequence[str]) -> tuple[Member, ...]:
        """The members of these names, in this order."""
        by_name = {member.name: member for member in self.members}
        return tuple(by_name[name] for name in names)

    def hostfile(self, order: Sequence[str]) -> str:
        """The content of a hostfile for these nodes in this order."""
        return json.dumps({**self.common, "hosts": [m.entry for m in self.named(order)]})

    def ring(self, order: Sequence[str], starting_port: int) -> tuple[tuple[str, ...], ...]:
        """On which addresses the ranks of these nodes listen for each other, as mlx.launch deals them out."""
        ports = itertools.count(starting_port)
        ips = (member.entry.get("ips", ()) for member in self.named(order))
        return tuple(tuple(f"{ip}:{next(ports)}" for ip in own) for own in ips)

    def arguments(
        self,
        order: Sequence[str],
        load: Callable[[Sequence[str]], Settings],
        front_door: str | None = None,
    ) -> tuple[tuple[str, ...], str]:
        """Arguments of the server for ranks in this order, and a note for the user or nothing.

        load: the settings with more `--set` arguments; raises ConfigError.  Layers that are assigned by hand
        are kept where they fit these nodes in this order, else they are planned.
        front_door: the address of the launcher as the leader sees it, whose X-Forwarded-For is to be believed.
        """
        overrides = [*self._definitions(order), f"cluster.ranks=[{', '.join(order)}]"]
        if len(order) == 1:  # there is no ring whose addresses would say where it is to listen
            [member] = self.named(order)
            overrides.append(f"{format_key(('nodes', member.name))}.host={member.host}")
        overrides += ["launcher.supervised=true", "observe.log_format=json"]
        overrides.append(f"launcher.nodes=[{', '.join(member.name for member in self.members)}]")
        if front_door is not None:
            overrides.append(f"access.front_door={front_door}")
        note = ""
        config = load(overrides).config
        try:
            config.shards(len(order))
        except ConfigError as error:
            key = format_key(("models", config.model.name, "sharding"))
            overrides.append(f"{key}=auto")
            load(overrides)
            note = f"{str(error).rstrip('.')}: the layers are planned anew."
        return tuple(word for text in overrides for word in ("--set", text)), note

    def _definitions(self, order: Sequence[str]) -> list[str]:
        """Nodes that no file names, as settings: their rule depends on how many ranks there are."""
        settings = []
        for member in self.named(order):
            node = member.node
            if node.name == f"node{node.node_id}":
                key = format_key(("nodes", node.name))
                settings += [
                    f"{key}.node_id={node.node_id}",
                    f"{key}.host={node.host}",
                    f"{key}.ports=[{', '.join(str(port) for port in node.ports)}]",
                ]
        return settings
