"""The coordinator through real gRPC, mostly with its own client."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import grpc
import pytest

from server.rpc import cluster_pb2 as pb
from server.rpc import cluster_pb2_grpc, messages
from server.rpc.client import CoordinatorClient
from server.rpc.config_store import ConfigEntry
from server.rpc.coordinator import Coordinator
from server.rpc.errors import (
    BindError,
    CoordinatorLost,
    InvalidMessage,
    NotRegistered,
    PortInUse,
    Refused,
)
from server.rpc.listen import bind
from server.rpc.records import HealthPolicy, RankReport, RankState
from server.rpc.registry import ClusterRegistry
from tests.server.rpc.samples import heartbeat, registration

pytestmark = pytest.mark.anyio

POLICY = HealthPolicy(interval_s=0.05, failure_threshold=3)


class TwoKeys:
    """A configuration with one key that may change."""

    def __init__(self) -> None:
        self.batch = "8"

    def entries(self) -> Sequence[ConfigEntry]:
        return [
            ConfigEntry("api_gateway.port", "8000", "default", dynamic=False),
            ConfigEntry(
                "scheduler.max_batch_size", self.batch, "config/cluster.yaml", dynamic=True
            ),
        ]

    def change(self, changes: Mapping[str, str]) -> Mapping[str, str]:
        refused = {k: f"{k} is not dynamic" for k in changes if k != "scheduler.max_batch_size"}
        if not refused:
            self.batch = changes["scheduler.max_batch_size"]
        return refused


@asynccontextmanager
async def cluster(
    policy: HealthPolicy = POLICY,
) -> AsyncIterator[tuple[Coordinator, CoordinatorClient]]:
    coordinator = Coordinator(ClusterRegistry(7, 3, policy), TwoKeys())
    port = await coordinator.start("127.0.0.1", 0)
    client = CoordinatorClient("127.0.0.1", port)
    try:
        yield coordinator, client
    finally:
        await client.close()
        await coordinator.stop(1.0)


async def test_three_ranks_register_and_become_ready() -> None:
    async with cluster(HealthPolicy()) as (coordinator, client):
        for rank in range(3):
            assert await client.register(registration(rank), deadline_s=5) == HealthPolicy()
            assert not coordinator.snapshot().ready
            await client.heartbeat(heartbeat(rank, parameter_bytes=100 + rank))
        status = await client.status()
        assert status.ready
        assert [rank.registration for rank in status.ranks] == [registration(r) for r in range(3)]
        assert [r.report.parameter_bytes for r in status.ranks if r.report] == [100, 101, 102]


async def test_rank_0_needs_no_connection_to_its_own_coordinator() -> None:
    async with cluster() as (coordinator, client):
        await client.register(registration(0), deadline_s=5)
        client.beat_here(coordinator.heartbeat)
        await coordinator.stop(0.1)
        reply = await client.heartbeat(heartbeat(0, parameter_bytes=77))
        assert reply.policy == POLICY
        [rank] = coordinator.snapshot().ranks
        assert rank.report is not None
        assert rank.report.parameter_bytes == 77
        with pytest.raises(NotRegistered):
            await client.heartbeat(heartbeat(1))


async def test_refusals_keep_their_type_and_sentence() -> None:
    async with cluster() as (_, client):
        with pytest.raises(NotRegistered, match=r"rank 1 \(mini2\) has not registered"):
            await client.heartbeat(heartbeat(1))
        with pytest.raises(Refused, match="epoch 6, the coordinator runs epoch 7"):
            await client.register(registration(0, epoch=6), deadline_s=5)
        with pytest.raises(InvalidMessage, match=r"^node: must not be empty"):
            await client.register(registration(0, node=""), deadline_s=5)
        with pytest.raises(InvalidMessage, match=r"^changes: must not be empty"):
            await client.set_config({})


@pytest.mark.parametrize(
    ("message", "status", "details"),
    [
        (replace(registration(0), pid=0), "INVALID_ARGUMENT", "pid: must be at least 1"),
        (
            replace(registration(0), epoch=8),
            "FAILED_PRECONDITION",
            "rank 0 (mini1) belongs to epoch 8, the coordinator runs epoch 7",
        ),
    ],
)
async def test_status_codes_on_the_wire(message: Any, status: str, details: str) -> None:
    async with cluster() as (_, client), grpc.aio.insecure_channel(client.target) as channel:
        stub = cluster_pb2_grpc.CoordinatorStub(channel)
        with pytest.raises(grpc.aio.AioRpcError) as refusal:
            await stub.Register(messages.registration_to(message), timeout=5)
        assert refusal.value.code().name == status
        assert refusal.value.details() == details


async def test_a_message_above_the_limit_does_not_reach_the_coordinator() -> None:
    async with cluster() as (_, client), grpc.aio.insecure_channel(client.target) as channel:
        stub = cluster_pb2_grpc.CoordinatorStub(channel)
        huge = pb.SetConfigRequest(changes={"scheduler.max_batch_size": "9" * (2 << 20)})
        with pytest.raises(grpc.aio.AioRpcError) as refusal:
            await stub.SetConfig(huge, timeout=5)
        assert refusal.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_a_taken_port_is_named() -> None:
    async with cluster() as (_, client):
        port = int(client.target.rpartition(":")[2])
        second = Coordinator(ClusterRegistry(7, 3, POLICY), TwoKeys())
        with pytest.raises(PortInUse, match=f"^port {port} is already in use on 127.0.0.1$"):
            await second.start("127.0.0.1", port)
    with bind("127.0.0.1", 0) as holder, pytest.raises(PortInUse):
        await second.start("127.0.0.1", holder.getsockname()[1])


async def test_nobody_can_share_the_port_of_a_running_coordinator() -> None:
    async with cluster() as (_, client):
        host, _, port = client.target.rpartition(":")
        with socket.socket() as intruder:
            intruder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            with pytest.raises(OSError, match="in use"):
                intruder.bind((host, int(port)))


async def test_an_address_of_another_machine_is_refused() -> None:
    coordinator = Coordinator(ClusterRegistry(7, 3, POLICY), TwoKeys())
    with pytest.raises(BindError, match=r"can't listen on 192\.0\.2\.1 port 8400"):
        await coordinator.start("192.0.2.1", 8400)


async def test_config_is_shown_changed_and_refused() -> None:
    async with cluster() as (_, client):
        assert [e.key for e in await client.get_config()] == [
            "api_gateway.port",
            "scheduler.max_batch_size",
        ]
        refused = await client.set_config(
            {"scheduler.max_batch_size": "9", "api_gateway.port": "1"}
        )
        assert (refused.revision, dict(refused.refused)) == (
            0,
            {"api_gateway.port": "api_gateway.port is not dynamic"},
        )
        changed = await client.set_config({"scheduler.max_batch_size": "16"})
        assert (changed.revision, dict(changed.refused)) == (1, {})
        (entry,) = await client.get_config("scheduler")
        assert (entry.value, entry.dynamic) == ("16", True)
        assert await client.get_config("sched") == []


async def test_heartbeats_bring_config_changes_until_the_rank_has_them() -> None:
    async with cluster() as (_, client):
        await client.register(registration(0), deadline_s=5)
        assert (await client.heartbeat(heartbeat(0))).config_revision == 0
        await client.set_config({"scheduler.max_batch_size": "16"})
        behind = await client.heartbeat(heartbeat(0))
        assert behind.config_revision == 1
        assert behind.config_changes == {"scheduler.max_batch_size": "16"}
        assert (await client.heartbeat(heartbeat(0, config_revision=1))).config_changes == {}


async def test_watchers_see_registration_readiness_config_and_death() -> None:
    async with cluster() as (_, client):
        states = client.watch()
        assert (await anext(states)).ranks == ()
        await client.register(registration(0), deadline_s=5)
        assert (await anext(states)).ranks[0].state is RankState.STARTING
        await client.set_config({"scheduler.max_batch_size": "16"})
        assert (await anext(states)).config_revision == 1
        while (state := await anext(states)).ranks[0].state is not RankState.DEAD:
            pass
        assert "no heartbeat for more than" in state.reason
        await states.aclose()


async def test_stopping_ends_the_watchers() -> None:
    async with cluster() as (coordinator, client):
        states = client.watch()
        await anext(states)
        await coordinator.stop(5.0)
        assert [state async for state in states] == []


async def test_registration_waits_for_a_coordinator_that_starts_later() -> None:
    with bind("127.0.0.1", 0) as holder:
        port = holder.getsockname()[1]
    client = CoordinatorClient("127.0.0.1", port)
    waiting = asyncio.create_task(client.register(registration(0), deadline_s=30))
    await asyncio.sleep(0.3)
    coordinator = Coordinator(ClusterRegistry(7, 3, POLICY), TwoKeys())
    await coordinator.start("127.0.0.1", port)
    assert await waiting == POLICY
    await client.close()
    await coordinator.stop(1.0)


async def test_registration_gives_up_at_its_deadline() -> None:
    with bind("127.0.0.1", 0) as silent:  # accepts connections but never answers
        client = CoordinatorClient("127.0.0.1", silent.getsockname()[1], call_timeout_s=0.2)
        with pytest.raises(CoordinatorLost, match=r"no coordinator at 127.* within 0\.5 s"):
            await client.register(registration(0), deadline_s=0.5)
        await client.close()


async def test_heartbeats_go_on_apply_config_and_report_at_once() -> None:
    async with cluster(HealthPolicy(interval_s=60)) as (_, client):
        policy = await client.register(registration(0), deadline_s=5)
        states = client.watch()
        await anext(states)
        report = RankReport(RankState.LOADING)
        applied: list[tuple[int, Mapping[str, str]]] = []
        beats = asyncio.create_task(
            client.run_heartbeats(
                registration(0), policy, lambda: report, lambda *change: applied.append(change)
            )
        )
        assert (await anext(states)).ranks[0].state is RankState.LOADING
        await client.set_config({"scheduler.max_batch_size": "16"})
        await anext(states)
        report = RankReport(RankState.READY)
        client.report_soon()
        assert (await anext(states)).ranks[0].state is RankState.READY
        report = RankReport(RankState.DRAINING)
        client.report_soon()
        drained = await anext(states)
        assert drained.ranks[0].state is RankState.DRAINING
        assert drained.ranks[0].config_revision == 1
        assert applied == [(1, {"scheduler.max_batch_size": "16"})]
        beats.cancel()
        await states.aclose()


async def test_heartbeats_end_with_an_error_when_the_coordinator_is_gone() -> None:
    async with cluster() as (coordinator, client):
        policy = await client.register(registration(0), deadline_s=5)
        beats = asyncio.create_task(
            client.run_heartbeats(
                registration(0), policy, lambda: RankReport(RankState.READY), lambda *_: None
            )
        )
        await asyncio.sleep(0)
        await coordinator.stop(0)
        with pytest.raises(CoordinatorLost, match="was silent for"):
            await asyncio.wait_for(beats, 30)


async def test_heartbeats_end_with_an_error_when_another_launch_runs_there() -> None:
    async with cluster() as (_, client):
        with pytest.raises(Refused, match="belongs to epoch 6"):
            await client.run_heartbeats(
                registration(0, epoch=6),
                POLICY,
                lambda: RankReport(RankState.READY),
                lambda *_: None,
            )
