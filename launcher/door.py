"""What the supervisor asks of the front door."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class LeaderAddress:
    """Where rank 0 of an epoch answers: its inference port."""

    host: str
    port: int
    epoch: int = 0
    node: str = ""  # whose certificate it must have, where the cluster has TLS


class Door(Protocol):
    """The clients' side of the launcher, in its event loop."""

    async def start(self) -> None:
        """Open the gateway port.  Raises PortInUse or BindError, AccessError, TlsError."""
        ...

    async def stop(self, grace: float) -> None:
        """Close the port; open responses get `grace` seconds."""
        ...

    def leader_changed(
        self, address: LeaderAddress | None, reason: str = "", permanent: bool = False
    ) -> None:
        """Rank 0 is at `address` and ready.  None: nowhere, for `reason`; permanent: it won't come back."""
        ...

    def drain(self, on: bool) -> None:
        """Whether new requests are refused while those at work go on."""
        ...

    def in_flight(self) -> int:
        """Requests that have no whole answer yet, those included that wait for a leader."""
        ...

    def stats(self) -> dict[str, object]:
        """For people: in_flight, waiting, resumed, draining."""
        ...
