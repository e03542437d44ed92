"""What operators ask of the launcher through the coordinator.  Pure.

The coordinator only keeps it: the launcher, which sees it in each status, does it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from server.rpc.errors import InvalidMessage, Refused

NOT_SUPERVISED = (
    "no launcher runs this cluster, so nobody could do it; start it with python -m launcher"
)


@dataclass(frozen=True)
class Wishes:
    """The latest of each kind; None: nobody has asked in this epoch."""

    revision: int = 0  # grows with each wish, so that the same one can be asked for again
    leader: str | None = None  # a node; "": as the election strategy says
    draining: bool | None = None


class WishBook:
    """Takes wishes in for a launcher that knows `nodes`; without nodes there is no launcher."""

    def __init__(self, nodes: Sequence[str] = ()) -> None:
        self._nodes = tuple(nodes)
        self.wishes = Wishes()

    def lead(self, node: str) -> None:
        """Raises InvalidMessage for a node that there is not, Refused without a launcher."""
        self._check_supervised()
        if node and node not in self._nodes:
            names = ", ".join(self._nodes)
            raise InvalidMessage(f"node: there is no {node!r}; the nodes are {names}")
        self._add(replace(self.wishes, leader=node))

    def drain(self, on: bool) -> None:
        """Raises Refused without a launcher."""
        self._check_supervised()
        self._add(replace(self.wishes, draining=on))

    def _check_supervised(self) -> None:
        if not self._nodes:
            raise Refused(NOT_SUPERVISED)

    def _add(self, wishes: Wishes) -> None:
        self.wishes = replace(wishes, revision=self.wishes.revision + 1)
