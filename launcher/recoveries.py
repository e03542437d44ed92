"""How long it took to serve again after something broke: what the launcher can see of it."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from dataclasses import asdict, dataclass

from launcher.decide import Cause
from launcher.epoch import Times

KEPT = 50


@dataclass(frozen=True)
class Recovery:
    """One change of epoch; seconds.  `stop`: from when it was known to when nothing was left of the old one;
    `launch`: until all new ranks had met; `load`: until they were ready.  What it took to notice is not in it.
    """

    epoch: int  # the new one
    cause: str
    reason: str
    node: str | None
    leader: str
    nodes: int
    standby: bool  # the new ranks had been waiting
    noticed_at: float  # seconds since 1970
    stop_s: float
    wait_s: float  # backoff, and attempts in between that came to nothing
    launch_s: float
    load_s: float

    @property
    def total_s(self) -> float:
        return self.stop_s + self.wait_s + self.launch_s + self.load_s

    def document(self) -> dict[str, object]:
        """For status; seconds to the millisecond."""
        fields = {**asdict(self), "total_s": self.total_s}
        return {k: round(v, 3) if isinstance(v, float) else v for k, v in fields.items()}


@dataclass(frozen=True)
class Broken:
    """An epoch that has ended, and why; `node`: whose fault, if anybody's."""

    times: Times
    cause: Cause
    reason: str
    node: str | None


def recovery_of(
    broken: Broken, after: Times, epoch: int, order: tuple[str, ...], standby: bool
) -> Recovery:
    """From the end of an epoch to the next one that is ready."""
    before = broken.times
    assert before.faulted is not None
    assert before.ended is not None
    assert after.ready is not None
    answered = after.answered if after.answered is not None else after.ready
    return Recovery(
        epoch=epoch,
        cause=broken.cause.value,
        reason=broken.reason,
        node=broken.node,
        leader=order[0],
        nodes=len(order),
        standby=standby,
        noticed_at=time.time() - (time.monotonic() - before.faulted),
        stop_s=before.ended - before.faulted,
        wait_s=after.launched - before.ended,
        launch_s=answered - after.launched,
        load_s=after.ready - answered,
    )


class Recoveries:
    """The latest ones."""

    def __init__(self) -> None:
        self._latest: deque[Recovery] = deque(maxlen=KEPT)
        self.count = 0

    def add(self, recovery: Recovery) -> None:
        self._latest.append(recovery)
        self.count += 1

    def __iter__(self) -> Iterator[Recovery]:
        return iter(self._latest)
