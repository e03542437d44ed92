"""Requests that wait until rank 0 may be asked for them, as `suspects` has it; of one event loop."""

from __future__ import annotations

import asyncio

from launcher.door import LeaderAddress
from launcher.frontdoor.leadership import Leadership
from launcher.frontdoor.suspects import Case, Suspects, Verdict


class Turns:
    """Every attempt begins with `wait` and ends with `end`, every request with `forget`."""

    def __init__(self, leadership: Leadership) -> None:
        self._leadership, self._suspects = leadership, Suspects()
        self._changed = asyncio.Event()

    def is_due(self, case: Case, leader: LeaderAddress) -> bool:
        now = _now()
        self._suspects.meet(case, leader, now)
        return self._suspects.may_start(case, leader, now)

    async def wait(self, case: Case, leader: LeaderAddress) -> bool:
        """Until `leader` may be asked for it, which begins an attempt; False once somebody else leads."""
        lost = asyncio.create_task(self._leadership.lost(leader))
        try:
            while self._leadership.address == leader:
                if self.is_due(case, leader):
                    self._suspects.start(case, leader, _now())
                    return True
                changed = asyncio.create_task(self._changed.wait())
                pause = self._suspects.pause(case, _now()) or None
                try:
                    await asyncio.wait(
                        {lost, changed}, timeout=pause, return_when=asyncio.FIRST_COMPLETED
                    )
                finally:
                    changed.cancel()
            return False
        finally:
            lost.cancel()

    def got_token(self, case: Case) -> None:
        """The attempt comes to something."""
        if self._suspects.got_token(case):
            self._tell()

    def end(self, case: Case, *, fault: bool) -> Verdict:
        """An attempt was interrupted."""
        verdict = self._suspects.end(case, _now(), fault=fault)
        self._tell()
        return verdict

    def forget(self, case: Case) -> None:
        """The request is over."""
        self._suspects.forget(case)
        self._tell()

    def _tell(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()


def _now() -> float:
    return asyncio.get_running_loop().time()
