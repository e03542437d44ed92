from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from server.rpc.errors import NotRegistered, Refused
from server.rpc.records import HealthPolicy, RankState, Versions
from server.rpc.registry import ClusterRegistry
from tests.server.rpc.samples import NODES, heartbeat, registration

POLICY = HealthPolicy(interval_s=5.0, failure_threshold=3)
OTHER_VERSIONS = Versions("3.11.7", "0.33.0", "0.32.2", "0.1.0")


def fresh(*ranks: int) -> ClusterRegistry:
    registry = ClusterRegistry(epoch=7, size=3, policy=POLICY)
    for rank in ranks:
        registry.register(registration(rank), now=0.0)
    return registry


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"epoch": 6}, "rank 1 (mini2) belongs to epoch 6, the coordinator runs epoch 7"),
        ({"size": 2}, "rank 1 (mini2) says the ring has 2 ranks, the coordinator has 3"),
        ({"node": "mini1"}, "rank 1 (mini1) has the name of rank 0"),
        (
            {"fingerprint": "beef", "model": "other"},
            "rank 1 (mini2) has model other (28 layers, fingerprint beef), "
            "rank 0 (mini1) has demo (28 layers, fingerprint f00d)",
        ),
        (
            {"versions": OTHER_VERSIONS},
            "rank 1 (mini2) runs mlx 0.33.0, rank 0 (mini1) runs 0.32.4",
        ),
        (
            {"versions": Versions("3.12.0", "0.32.4", "0.32.2", "0.1.0")},
            "rank 1 (mini2) runs Python 3.12, rank 0 (mini1) runs 3.11",
        ),
        (
            {"layer_start": 11},
            "rank 0 (mini1) ends with layer 9 but rank 1 (mini2) begins with layer 11",
        ),
        (
            {"layer_end": 18},
            "rank 1 (mini2) ends with layer 17 but rank 2 (master) begins with layer 19",
        ),
    ],
)
def test_a_contradicting_registration_is_refused_naming_both_sides(
    changes: dict[str, Any], sentence: str
) -> None:
    registry = fresh(0, 2)
    with pytest.raises(Refused) as refusal:
        registry.register(registration(1, **changes), now=1.0)
    assert str(refusal.value) == sentence
    assert registry.snapshot(1.0).missing == (1,)


@pytest.mark.parametrize(
    ("rank", "changes", "sentence"),
    [
        (0, {"layer_start": 1}, "rank 0 (mini1) must begin with layer 0, it has 1"),
        (2, {"layer_end": 27}, "rank 2 (master) is the last and must end with layer 27"),
    ],
)
def test_the_ends_of_the_ring_hold_the_ends_of_the_model(
    rank: int, changes: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(Refused, match="^" + sentence.replace("(", r"\(").replace(")", r"\)")):
        fresh().register(registration(rank, **changes), now=0.0)


def test_python_patch_releases_may_differ() -> None:
    registry = fresh(0)
    versions = Versions("3.11.9", "0.32.4", "0.32.2", "0.1.0")
    registry.register(registration(1, versions=versions), now=0.0)
    assert registry.snapshot(0.0).missing == (2,)


def test_the_same_registration_may_be_repeated_but_no_other_process_takes_the_rank() -> None:
    registry = fresh(1)
    registry.register(registration(1), now=3.0)
    with pytest.raises(Refused, match=r"mini2 registered it from process 1001 .* process 4242"):
        registry.register(registration(1, pid=4242), now=3.0)
    with pytest.raises(Refused, match="already registered differently from process 1001"):
        registry.register(registration(1, layer_end=18), now=3.0)


def test_heartbeats_of_strangers_are_refused() -> None:
    registry = fresh(0)
    with pytest.raises(NotRegistered, match=r"rank 1 \(mini2\) has not registered"):
        registry.heartbeat(heartbeat(1), now=1.0)
    stranger = replace(heartbeat(0), node="mini9")
    with pytest.raises(Refused, match="rank 0 is mini1, the heartbeat says mini9"):
        registry.heartbeat(stranger, now=1.0)


def test_reason_tells_the_gravest_first() -> None:
    registry = fresh(0, 1)
    registry.heartbeat(heartbeat(0), now=1.0)
    registry.heartbeat(heartbeat(1, RankState.LOADING, reason="40 %"), now=1.0)
    assert registry.snapshot(1.0).reason == "rank 1 (mini2) is loading: 40 %"
    registry.heartbeat(heartbeat(1), now=2.0)
    assert registry.snapshot(2.0).reason == "rank 2 has not registered yet"
    registry.heartbeat(heartbeat(1, RankState.FAILED, reason="out of memory"), now=3.0)
    registry.heartbeat(heartbeat(0, RankState.LOADING), now=3.0)
    assert registry.snapshot(3.0).reason == "rank 1 (mini2) is failed: out of memory"
    assert fresh().snapshot(0.0).reason == "ranks 0, 1, 2 have not registered yet"


def test_silence_is_death_and_a_late_heartbeat_revives() -> None:
    registry = fresh(0)
    registry.heartbeat(heartbeat(0), now=1.0)
    assert registry.snapshot(16.0).ranks[0].state is RankState.READY
    late = registry.snapshot(16.1).ranks[0]
    assert (late.state, late.reason) == (RankState.DEAD, "no heartbeat for more than 15 s")
    registry.heartbeat(heartbeat(0), now=17.0)
    assert registry.snapshot(17.0).ranks[0].state is RankState.READY


def test_a_rank_is_judged_by_the_policy_it_was_told() -> None:
    registry = fresh(0, 1)
    registry.policy = HealthPolicy(interval_s=1.0, failure_threshold=1)
    registry.heartbeat(heartbeat(0), now=1.0)
    states = [rank.state for rank in registry.snapshot(10.0).ranks]
    assert states == [RankState.DEAD, RankState.STARTING]


def test_digest_ignores_ages_and_bytes_but_not_states() -> None:
    registry = fresh(0)
    registry.heartbeat(heartbeat(0, parameter_bytes=1), now=1.0)
    before = registry.snapshot(1.0).digest()
    registry.heartbeat(heartbeat(0, parameter_bytes=2), now=2.0)
    assert registry.snapshot(3.0).digest() == before
    registry.heartbeat(heartbeat(0, RankState.DRAINING), now=3.0)
    assert registry.snapshot(3.0).digest() != before


class RegistryMachine(RuleBasedStateMachine):
    """Any order of events against a model of it: a dict of last signs of life and states."""

    def __init__(self) -> None:
        super().__init__()
        self.registry = ClusterRegistry(epoch=7, size=3, policy=POLICY)
        self.now = 0.0
        self.heard: dict[int, float] = {}
        self.reported: dict[int, RankState] = {}

    @rule(rank=st.integers(0, 2), pid=st.sampled_from([1, 2]))
    def register(self, rank: int, pid: int) -> None:
        asked = registration(rank, pid=pid)
        known = {r.rank: r.registration for r in self.registry.snapshot(self.now).ranks}
        if known.get(rank, asked) != asked:
            with pytest.raises(Refused):
                self.registry.register(asked, self.now)
            return
        self.registry.register(asked, self.now)
        self.heard.setdefault(rank, self.now)
        self.reported.setdefault(rank, RankState.STARTING)

    @rule(rank=st.integers(0, 2), state=st.sampled_from([s for s in RankState if s.name != "DEAD"]))
    def beat(self, rank: int, state: RankState) -> None:
        if rank not in self.heard:
            with pytest.raises(NotRegistered):
                self.registry.heartbeat(heartbeat(rank, state), self.now)
            return
        self.registry.heartbeat(heartbeat(rank, state), self.now)
        self.heard[rank], self.reported[rank] = self.now, state

    @rule(seconds=st.floats(0, 40))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    def expected(self, rank: int) -> RankState:
        silent = self.now - self.heard[rank] > POLICY.patience_s
        failed = self.reported[rank] is RankState.FAILED
        return RankState.DEAD if silent and not failed else self.reported[rank]

    @invariant()
    def agrees_with_the_model(self) -> None:
        snapshot = self.registry.snapshot(self.now)
        assert {r.rank: r.state for r in snapshot.ranks} == {
            r: self.expected(r) for r in self.heard
        }
        assert [r.rank for r in snapshot.ranks] == sorted(self.heard)
        assert all(r.node == NODES[r.rank] and r.heartbeat_age_s >= 0 for r in snapshot.ranks)

    @invariant()
    def ready_means_three_ready_ranks_and_no_reason(self) -> None:
        snapshot = self.registry.snapshot(self.now)
        states = [self.expected(rank) for rank in self.heard]
        assert snapshot.ready == (states == [RankState.READY] * 3)
        assert snapshot.ready == (snapshot.reason == "")


TestRegistryMachine = RegistryMachine.TestCase
TestRegistryMachine.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)
