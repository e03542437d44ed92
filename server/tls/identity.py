"""What a certificate of the cluster says of its holder: a kind and a name, in one DNS name of its own.

The suffix can't be anybody's address (.internal is reserved), so a certificate that names addresses besides,
such as that of the gateway, never passes for a node's.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

from server.tls.errors import TlsError

SUFFIX = "mlx-cluster.internal"
_LABELS = re.compile(r"[A-Za-z0-9_-]{1,63}(\.[A-Za-z0-9_-]{1,63})*")


class Kind(Enum):
    """What a holder may be."""

    NODE = "node"  # serves the node's ports, and calls those of others
    LAUNCHER = "launcher"  # calls the nodes
    CLIENT = "client"  # may call the ports of nodes, such as a Prometheus that reads their health
    GATEWAY = "gateway"  # serves the OpenAI API; calls nobody


@dataclass(frozen=True)
class Identity:
    """Who holds a certificate."""

    kind: Kind
    name: str

    def __str__(self) -> str:
        return f"{self.kind.value} {self.name}"

    @property
    def dns_name(self) -> str:
        """The name under which the certificate is checked."""
        return f"{self.name}.{self.kind.value}.{SUFFIX}"


def node(name: str) -> Identity:
    """The identity of a node.  Raises TlsError if a certificate can't name it."""
    return check_name(Identity(Kind.NODE, name))


def check_name(identity: Identity) -> Identity:
    """`identity`, if its name can stand in a certificate.  Raises TlsError."""
    if not _LABELS.fullmatch(identity.name):
        raise TlsError(
            f"{identity} can't stand in a certificate: between dots there must be 1 to 63 letters, "
            "digits, - or _."
        )
    return identity


def identity_in(dns_names: Iterable[str]) -> Identity | None:
    """The one identity among the names of a certificate; None where there is none, or more than one."""
    found = [identity for name in dns_names if (identity := _parse(name)) is not None]
    return found[0] if len(found) == 1 else None


def identity_of(certificate: Mapping[str, Any] | None) -> Identity | None:
    """Of the peer of a connection, as ssl.SSLSocket.getpeercert describes it."""
    names = (certificate or {}).get("subjectAltName", ())
    return identity_in(value for kind, value in names if kind == "DNS")


def _parse(name: str) -> Identity | None:
    for kind in Kind:
        head = name.removesuffix(f".{kind.value}.{SUFFIX}")
        if head != name and _LABELS.fullmatch(head):
            return Identity(kind, head)
    return None
