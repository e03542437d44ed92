"""Where a client really is, and whether that is allowed.

X-Forwarded-For is written by everybody on the way, so it is read from the right: each trusted hop vouches for
the address to its left, and the first one that is not a trusted hop is the client.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Sequence

from config.access import Network, as_network

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


class Networks:
    """A set of networks."""

    def __init__(self, texts: Iterable[str]) -> None:
        self._networks: tuple[Network, ...] = tuple(as_network(text) for text in texts)

    def __bool__(self) -> bool:
        return bool(self._networks)

    def __contains__(self, address: Address) -> bool:
        return any(address in network for network in self._networks)


def parse_address(text: str) -> Address | None:
    """An address, also with a port or in brackets; None for anything else.  ::ffff:1.2.3.4 is 1.2.3.4."""
    text = text.strip()
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:  # IPv4 with a port; IPv6 has more of them
        text = text.partition(":")[0]
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address


def client_address(peer: Address, forwarded: Sequence[str], trusted: Networks) -> Address | None:
    """The client behind `peer`; `forwarded`: values of all X-Forwarded-For headers, in order.

    None if a trusted hop passes on something that is no address.
    """
    if peer not in trusted:
        return peer
    client: Address = peer
    entries = [entry for value in forwarded for entry in value.split(",")]
    for entry in reversed(entries):
        address = parse_address(entry)
        if address is None:
            return None
        client = address
        if address not in trusted:
            break
    return client


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches what listens on `host`."""
    if host.lower().rstrip(".") == "localhost":
        return True
    address = parse_address(f"[{host.strip('[]')}]")
    return address is not None and address.is_loopback
