"""What is said at the start about what others on the network can read."""

from __future__ import annotations

from collections.abc import Sequence

from config.nodes import LOOPBACK
from config.tls import TlsConfig


def in_the_clear(config: TlsConfig, gateway: str, hosts: Sequence[str]) -> str:
    """One sentence, or nothing where all that leaves this machine is encrypted.

    gateway: the address that clients reach; hosts: those by which the ranks reach each other.
    """
    apart = any(not _is_loopback(host) for host in hosts)
    parts = {
        "requests and answers (tls.gateway.mode)": config.gateway.mode == "off"
        and not _is_loopback(gateway),
        "prompts and tokens between the nodes (tls.cluster.enabled)": apart
        and not config.cluster.enabled,
        "hidden states (tls.tensors)": apart and len(hosts) > 1 and not config.tensors,
    }
    clear = [what for what, readable in parts.items() if readable]
    return f"In the clear on the network: {', '.join(clear)}." if clear else ""


def _is_loopback(host: str) -> bool:
    return host in LOOPBACK or host.startswith("127.")
