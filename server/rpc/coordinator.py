"""The gRPC server on rank 0: the registry, the configuration and the watchers behind one port."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc

from server.rpc import cluster_pb2 as pb
from server.rpc import cluster_pb2_grpc, messages
from server.rpc.channel import SERVER_OPTIONS
from server.rpc.config_store import ConfigBackend, ConfigStore
from server.rpc.errors import (
    BindError,
    CoordinatorError,
    InvalidMessage,
    NotRegistered,
    Overloaded,
    Refused,
)
from server.rpc.listen import bind, join
from server.rpc.records import ClusterSnapshot
from server.rpc.registry import ClusterRegistry
from server.rpc.watchers import Watchers

MAX_CONCURRENT_CALLS = 256

Context = Any  # grpc.aio.ServicerContext

_STATUS = {
    InvalidMessage: grpc.StatusCode.INVALID_ARGUMENT,
    Refused: grpc.StatusCode.FAILED_PRECONDITION,
    NotRegistered: grpc.StatusCode.NOT_FOUND,
    Overloaded: grpc.StatusCode.RESOURCE_EXHAUSTED,
}


class Coordinator:
    """Runs in one asyncio loop; `clock` gives monotonic seconds."""

    def __init__(
        self,
        registry: ClusterRegistry,
        config: ConfigBackend,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._registry = registry
        self._clock = clock
        self._config = ConfigStore(config, self._announce)
        self._watchers = Watchers()
        self._announced = self.snapshot().digest()
        self._server: Any = None
        self._ticker: asyncio.Task[None] | None = None

    def snapshot(self) -> ClusterSnapshot:
        """The cluster at this moment."""
        return self._registry.snapshot(self._clock(), self._config.revision)

    async def start(self, host: str, port: int) -> int:
        """Listen, and return the port (a free one for port 0).  Raises PortInUse or BindError."""
        # gRPC reports every failure to bind in the same words; the probe tells which it is.
        with contextlib.closing(bind(host, port)):
            pass
        self._server = grpc.aio.server(
            options=SERVER_OPTIONS, maximum_concurrent_rpcs=MAX_CONCURRENT_CALLS
        )
        cluster_pb2_grpc.add_CoordinatorServicer_to_server(_Servicer(self), self._server)
        try:
            bound = int(self._server.add_insecure_port(join(host, port)))
        except RuntimeError as cause:
            raise BindError(host, port, f"can't listen on {host} port {port}: {cause}") from cause
        await self._server.start()
        self._ticker = asyncio.create_task(self._notice_silence())
        return bound

    async def stop(self, grace_s: float) -> None:
        """Take no more calls, end the watchers, and give running calls `grace_s` seconds."""
        if self._ticker is not None:
            self._ticker.cancel()
            await asyncio.wait({self._ticker}, timeout=grace_s)
        self._watchers.close()
        if self._server is not None:
            await self._server.stop(grace_s)

    async def _notice_silence(self) -> None:
        """Announce deaths, which no message announces."""
        while True:
            await asyncio.sleep(self._registry.policy.interval_s)
            self._announce()

    def _announce(self) -> None:
        snapshot = self.snapshot()
        digest = snapshot.digest()
        if digest != self._announced:
            self._announced = digest
            self._watchers.publish(snapshot)

    def register(self, message: Any) -> Any:
        self._registry.register(messages.registration_from(message), self._clock())
        self._announce()
        return pb.RegisterReply(policy=messages.policy_to(self._registry.policy))

    def heartbeat(self, message: Any) -> Any:
        beat = messages.heartbeat_from(message)
        self._registry.heartbeat(beat, self._clock())
        self._announce()
        return pb.HeartbeatReply(
            config_revision=self._config.revision,
            config_changes=self._config.changes_after(beat.config_revision),
            policy=messages.policy_to(self._registry.policy),
        )

    def get_config(self, message: Any) -> Any:
        entries = [
            pb.ConfigEntry(key=e.key, value=e.value, origin=e.origin, dynamic=e.dynamic)
            for e in self._config.entries(message.prefix)
        ]
        return pb.GetConfigReply(revision=self._config.revision, entries=entries)

    def set_config(self, message: Any) -> Any:
        changes = dict(message.changes)
        if not changes:
            raise InvalidMessage("changes: must not be empty")
        if not all(changes):
            raise InvalidMessage("changes: a key must not be empty")
        outcome = self._config.change(changes)
        refused = [
            pb.SetConfigReply.Refusal(key=key, reason=reason)
            for key, reason in sorted(outcome.refused.items())
        ]
        return pb.SetConfigReply(revision=outcome.revision, refused=refused)

    def watch(self) -> AsyncIterator[ClusterSnapshot]:
        """The state and then its changes, until `stop`.  Raises Overloaded."""
        return self._watchers.watch(self.snapshot())


class _Servicer:
    """gRPC's names for the coordinator's methods, and its statuses for their errors."""

    def __init__(self, coordinator: Coordinator) -> None:
        self._coordinator = coordinator

    async def Register(self, request: Any, context: Context) -> Any:
        return await _answer(context, lambda: self._coordinator.register(request))

    async def Heartbeat(self, request: Any, context: Context) -> Any:
        return await _answer(context, lambda: self._coordinator.heartbeat(request))

    async def GetStatus(self, request: Any, context: Context) -> Any:
        return messages.cluster_to(self._coordinator.snapshot())

    async def GetConfig(self, request: Any, context: Context) -> Any:
        return await _answer(context, lambda: self._coordinator.get_config(request))

    async def SetConfig(self, request: Any, context: Context) -> Any:
        return await _answer(context, lambda: self._coordinator.set_config(request))

    async def WatchState(self, request: Any, context: Context) -> AsyncIterator[Any]:
        try:
            async for snapshot in self._coordinator.watch():
                yield messages.cluster_to(snapshot)
        except Overloaded as error:
            await _abort(context, error)


async def _answer(context: Context, work: Callable[[], Any]) -> Any:
    try:
        return work()
    except CoordinatorError as error:
        return await _abort(context, error)


async def _abort(context: Context, error: CoordinatorError) -> Any:
    # abort() raises, which ends the call.
    await context.abort(_STATUS[type(error)], str(error))
