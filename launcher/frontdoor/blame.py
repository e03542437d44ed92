"""Whether a request breaks the engine, or has only been there when the engine broke.  Pure; times in seconds.

It is about requests that get no token while they have rank 0 to themselves.  Nodes lose their power and
processes are killed under them as well, several times in a row if somebody is at it, and no exit status nor
signal tells that from a request for which there is too little memory.  How the ring fares without it does:
after some faults it is kept away for a while.  If the ring fails all the same, what came before was not its
fault.  If the ring holds, and fails again when the request is back, it is less and less likely that this was
chance: of the failures of a ring that fails by itself, at whatever rate, as large a share falls to the
request as it has of the time.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

FEW = 3  # faults in a row from which on the ring is watched without the request
CHANCE = 0.03  # below which it is no chance any more
MOST = 12  # faults, however the ring fares without it
LONGER = 1.5  # times as long as those before
SHORTEST, LONGEST = 1.0, 30.0  # seconds in which the ring is watched without it


@dataclass(frozen=True)
class Trials:
    """Of one request since its last token."""

    faults: int = 0  # under it alone, in a row
    seconds: float = 0.0  # that it had the ring for, in these
    held: float = 0.0  # seconds that the ring has worked without it since then
    before: int = 0  # faults that were found not to be its own

    def failed(self, seconds: float) -> Trials:
        """The ring has failed while it had it, for so long."""
        return replace(self, faults=self.faults + 1, seconds=self.seconds + seconds)

    def held_without(self, seconds: float) -> Trials:
        """The ring has worked without it for so long."""
        return replace(self, held=self.held + seconds)

    def failed_without(self) -> Trials:
        """The ring has failed without it."""
        return Trials(before=self.before + self.faults)

    @property
    def chance(self) -> float:
        """That all faults of a ring that fails by itself fell into the request's time."""
        if self.held <= 0.0:
            return 1.0
        share = self.seconds / (self.seconds + self.held)
        return math.pow(share, self.faults)

    @property
    def is_guilty(self) -> bool:
        """Whether it is given up."""
        if self.faults + self.before >= MOST:
            return True
        return self.faults > FEW and self.chance <= CHANCE

    @property
    def pause(self) -> float:
        """How long the ring is to be watched without it before it is tried again.

        Another fault, in a trial that is not much longer than those before, is to tell.
        """
        if self.faults < FEW:
            return 0.0
        faults = self.faults + 1
        seconds = self.seconds * (1 + LONGER / self.faults)
        enough = seconds * (math.pow(CHANCE, -1 / faults) - 1)
        return min(LONGEST, max(SHORTEST, enough - self.held))
