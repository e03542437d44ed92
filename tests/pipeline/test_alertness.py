"""Waiting awake while waits are short."""

from __future__ import annotations

import socket
from concurrent.futures import ThreadPoolExecutor

import pytest

from pipeline.alertness import Alertness
from pipeline.errors import LinkClosed
from pipeline.frames import Ready
from pipeline.link import Connection

ENOUGH = 60.0


class Clock:
    """Goes on by a second with each look at it."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 1.0
        return self.now


def wait(alertness: Alertness, clock: Clock, arrives_at: int = 0, asleep: float = 0.0) -> int:
    """How often it looked.  If it has not seen anything by then, it sleeps."""
    looked = 0

    def arrived() -> bool:
        nonlocal looked
        looked += 1
        return looked == arrives_at

    def sleep() -> bool:
        clock.now += asleep
        return False

    assert alertness.wait(arrived, sleep) is (looked == arrives_at > 0)
    return looked


def test_nobody_looks_unless_the_last_wait_was_short() -> None:
    clock = Clock()
    alertness = Alertness(5.0, clock)
    assert wait(alertness, clock, asleep=4.0) == 0  # 5 in all
    assert wait(alertness, clock, arrives_at=3) == 3
    assert wait(alertness, clock, asleep=9.0) == 4  # in vain
    assert wait(alertness, clock, asleep=4.0) == 0
    assert wait(alertness, clock, arrives_at=1) == 1


def test_zero_never_looks() -> None:
    clock = Clock()
    alertness = Alertness(0.0, clock)
    for _ in range(3):
        assert wait(alertness, clock) == 0


@pytest.mark.parametrize("awake", [True, False])
def test_frames_arrive_and_ends_are_seen_either_way(awake: bool) -> None:
    ends = socket.socketpair()
    near, far = (Connection(end, "the other end") for end in ends)
    near.alertness = Alertness(ENOUGH if awake else 0.0)
    with ThreadPoolExecutor(1) as pool:
        for step in range(3):
            waiting = pool.submit(near.receive, None)
            far.send(Ready(step), ENOUGH)
            assert waiting.result(ENOUGH) == Ready(step)
        waiting = pool.submit(near.receive, None)
        far.close()
        with pytest.raises(LinkClosed):
            waiting.result(ENOUGH)
    near.close()
