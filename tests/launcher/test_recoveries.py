"""The times of a recovery, from those of the epochs before and after."""

from __future__ import annotations

import time

import pytest

from launcher.decide import Cause
from launcher.epoch import Times
from launcher.recoveries import Broken, recovery_of


def test_its_parts_follow_each_other_from_when_it_was_noticed() -> None:
    now, wall = time.monotonic(), time.time()
    before = Times(launched=now - 90, faulted=now - 10, ended=now - 9.5)
    after = Times(launched=now - 9, answered=now - 6, ready=now - 4)
    broken = Broken(before, Cause.DIED, "r", "n")
    made = recovery_of(broken, after, 2, ("mini2", "mini1"), standby=True)
    assert (made.leader, made.nodes, made.standby) == ("mini2", 2, True)
    assert (made.stop_s, made.wait_s, made.launch_s, made.load_s) == (0.5, 0.5, 3.0, 2.0)
    assert made.total_s == 6.0
    assert made.document()["noticed_at"] == pytest.approx(wall - 10, abs=1)
