from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.rpc import cluster_pb2 as pb
from server.rpc import messages
from server.rpc.errors import InvalidMessage
from server.rpc.records import (
    ClusterSnapshot,
    Counters,
    Heartbeat,
    Memory,
    Ports,
    RankReport,
    RankSnapshot,
    RankState,
    Registration,
    Versions,
)
from tests.server.rpc.samples import heartbeat, registration

text = st.text(min_size=1, max_size=20).filter(str.strip)
small = st.integers(0, 2**31)
big = st.integers(0, 2**63)
port = st.integers(1, 65535)
age = st.floats(0, 1e9)
reported = st.sampled_from([state for state in RankState if state is not RankState.DEAD])


@st.composite
def registrations(draw: Any) -> Registration:
    start, layers, above = draw(small), draw(st.integers(1, 999)), draw(st.integers(0, 999))
    rank = draw(st.integers(0, messages.MAX_RANKS - 1))
    return Registration(
        epoch=draw(big),
        rank=rank,
        size=draw(st.integers(rank + 1, messages.MAX_RANKS)),
        node=draw(text),
        host=draw(text),
        pid=draw(st.integers(1, 2**31)),
        ports=Ports(draw(port), draw(port), draw(port)),
        layer_start=start,
        layer_end=start + layers,
        num_layers=start + layers + above,
        model=draw(text),
        fingerprint=draw(text),
        versions=Versions(*(draw(text) for _ in range(4))),
    )


reports = st.builds(
    RankReport,
    state=reported,
    reason=st.text(max_size=20),
    load_progress=st.none() | st.floats(0, 1),
    parameter_bytes=big,
    memory=st.builds(Memory, big, big, big, big),
    sequences=small,
    last_step_age_s=st.none() | age,
    counters=st.none() | st.builds(Counters, big, big, big, big),
)


@st.composite
def clusters(draw: Any) -> ClusterSnapshot:
    ranks = [
        RankSnapshot(reg, report, draw(small) if report else 0, state, reason, draw(age))
        for reg, report, state, reason in draw(
            st.lists(
                st.tuples(
                    registrations(),
                    st.none() | reports,
                    st.sampled_from(list(RankState)),
                    st.text(max_size=9),
                ),
                max_size=3,
            )
        )
    ]
    size = draw(st.integers(1, messages.MAX_RANKS))
    return ClusterSnapshot(draw(big), size, draw(small), tuple(ranks))


def over_the_wire(message: Any) -> Any:
    return type(message).FromString(message.SerializeToString())


@settings(deadline=None)
@given(registrations())
def test_a_registration_survives_the_wire(record: Registration) -> None:
    message = over_the_wire(messages.registration_to(record))
    assert messages.registration_from(message) == record


@settings(deadline=None)
@given(st.builds(Heartbeat, big, st.integers(0, messages.MAX_RANKS - 1), text, reports, big))
def test_a_heartbeat_survives_the_wire(record: Heartbeat) -> None:
    assert messages.heartbeat_from(over_the_wire(messages.heartbeat_to(record))) == record


@settings(deadline=None)
@given(clusters())
def test_a_status_survives_the_wire(record: ClusterSnapshot) -> None:
    assert messages.cluster_from(over_the_wire(messages.cluster_to(record))) == record


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"size": 0}, "size: 0 is not between 1 and 1024"),
        ({"size": 1 << 31}, "size: 2147483648 is not between 1 and 1024"),
        ({"rank": 3}, "rank: 3 is not below 3"),
        ({"pid": 0}, "pid: must be at least 1"),
        ({"node": ""}, "node: must not be empty"),
        ({"host": "  "}, "host: must not be empty"),
        ({"model": "m" * 1025}, "model: longer than 1024 characters"),
        ({"fingerprint": ""}, "fingerprint: must not be empty"),
        ({"layer_end": 0}, "layer_end: 0 is not above layer_start 0"),
        ({"layer_end": 29}, "layer_end: 29 is above num_layers 28"),
        ({"ports": pb.Ports(inference=1, communication=2)}, "ports.health: 0 is not between"),
        ({"ports": pb.Ports(inference=70000)}, "ports.inference: 70000 is not between"),
        ({"versions": pb.Versions(python="3.11")}, "versions.mlx: must not be empty"),
    ],
)
def test_a_bad_registration_is_refused_naming_the_field(
    change: dict[str, Any], complaint: str
) -> None:
    message = messages.registration_to(registration(0))
    for name in change:
        message.ClearField(name)
    message.MergeFrom(pb.RegisterRequest(**change))
    with pytest.raises(InvalidMessage, match=f"^{complaint}"):
        messages.registration_from(message)


def test_a_status_of_an_absurd_size_is_refused() -> None:
    with pytest.raises(InvalidMessage, match=r"^size: 4294967295 is not between 1 and 1024"):
        messages.cluster_from(pb.ClusterStatus(size=(1 << 32) - 1))


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"state": 0}, "state: 0 is not a known state"),
        ({"state": 99}, "state: 99 is not a known state"),
        ({"state": pb.RANK_STATE_DEAD}, "state: only the coordinator declares a rank dead"),
        ({"node": ""}, "node: must not be empty"),
        ({"load_progress": 1.5}, "load_progress: 1.5 is above 1"),
        ({"load_progress": math.nan}, "load_progress: nan is not a number from 0 up"),
        ({"last_step_age_s": -1.0}, "last_step_age_s: -1 is not a number from 0 up"),
    ],
)
def test_a_bad_heartbeat_is_refused_naming_the_field(
    change: dict[str, Any], complaint: str
) -> None:
    message = messages.heartbeat_to(heartbeat(0))
    for name in change:
        message.ClearField(name)
    message.MergeFrom(pb.HeartbeatRequest(**change))
    with pytest.raises(InvalidMessage, match=f"^{complaint}"):
        messages.heartbeat_from(message)
