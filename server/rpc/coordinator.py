"""The gRPC server on rank 0: the registry, the configuration and the watchers behind one port."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import replace
from typing import Any

import grpc

from pipeline.timeline import ACTIVITIES
from server.rpc import cluster_pb2 as pb
from server.rpc import measures, messages
from server.rpc.channel import SERVER_OPTIONS
from server.rpc.config_store import ConfigBackend, ConfigStore
from server.rpc.errors import BindError, InvalidMessage
from server.rpc.fields import text_from
from server.rpc.listen import bind, join
from server.rpc.log_book import LogBook
from server.rpc.records import ClusterSnapshot
from server.rpc.registry import ClusterRegistry
from server.rpc.service import rpc_handlers
from server.rpc.timelines import Recording, TimelineDesk
from server.rpc.watchers import Watchers
from server.rpc.wishes import WishBook

MAX_CONCURRENT_CALLS = 256

MAX_CHANGES = 64  # in one SetConfig; there are fewer dynamic settings


class Coordinator:
    """Runs in one asyncio loop; `clock` gives monotonic seconds."""

    def __init__(
        self,
        registry: ClusterRegistry,
        config: ConfigBackend,
        clock: Callable[[], float] = time.monotonic,
        log_lines: int = 2000,
        supervised_nodes: Sequence[str] = (),
    ) -> None:
        """`supervised_nodes`: all that the launcher may start; empty: no launcher runs this cluster."""
        self.interceptors: Sequence[Any] = ()  # before every call; set before `start`
        self.credentials: Any = (
            None  # of TLS, by which callers are known by name; set before `start`
        )
        self._registry = registry
        self._clock = clock
        self.config = ConfigStore(config, self._announce)
        self._watchers = Watchers()
        self._timelines = TimelineDesk(registry.epoch)
        self._wishes = WishBook(supervised_nodes)
        self.logs = LogBook(registry.epoch, log_lines)
        self._announced = self.snapshot().digest()
        self._server: Any = None
        self._ticker: asyncio.Task[None] | None = None

    def snapshot(self) -> ClusterSnapshot:
        """The cluster at this moment."""
        snapshot = self._registry.snapshot(self._clock(), self.config.revision)
        return replace(snapshot, wishes=self._wishes.wishes)

    @property
    def watching(self) -> int:
        """Watchers that are connected."""
        return len(self._watchers)

    async def start(self, host: str, port: int) -> int:
        """Listen, and return the port (a free one for port 0).  Raises PortInUse or BindError."""
        # gRPC reports every failure to bind in the same words; the probe tells which it is.
        with contextlib.closing(bind(host, port)):
            pass
        self._server = grpc.aio.server(
            options=SERVER_OPTIONS,
            maximum_concurrent_rpcs=MAX_CONCURRENT_CALLS,
            interceptors=self.interceptors,
        )
        known = self.credentials is not None
        self._server.add_generic_rpc_handlers((rpc_handlers(self, known),))
        address = join(host, port)
        try:
            if known:
                bound = int(self._server.add_secure_port(address, self.credentials))
            else:
                bound = int(self._server.add_insecure_port(address))
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
        order = self._timelines.order
        return pb.HeartbeatReply(
            config_revision=self.config.revision,
            config_changes=self.config.changes_after(beat.config_revision),
            policy=messages.policy_to(self._registry.policy),
            time_s=time.time(),
            timeline=order and measures.order_to(order),
        )

    async def record_timeline(self, seconds: float) -> Recording:
        """What all ranks do in the next `seconds`.  Raises Overloaded while another one is recorded."""
        ranks = {rank.rank for rank in self.snapshot().ranks}
        return await self._timelines.record(seconds, ranks, self._registry.policy.interval_s)

    def ship_logs(self, message: Any) -> Any:
        self.logs.take(measures.logs_from(message, messages.MAX_RANKS))
        return pb.ShipLogsReply()

    def send_timeline(self, message: Any) -> Any:
        self._timelines.receive(
            measures.timeline_from(message, len(ACTIVITIES), messages.MAX_RANKS)
        )
        return pb.SendTimelineReply()

    def lead(self, message: Any) -> Any:
        self._wishes.lead(text_from(message.node, "node", empty=True))
        self._announce()
        return pb.LeadReply(revision=self._wishes.wishes.revision)

    def drain(self, message: Any) -> Any:
        self._wishes.drain(message.on)
        self._announce()
        return pb.DrainReply(revision=self._wishes.wishes.revision)

    def get_status(self, message: Any) -> Any:
        return messages.cluster_to(self.snapshot())

    def get_config(self, message: Any) -> Any:
        prefix = text_from(message.prefix, "prefix", empty=True)
        entries = [
            pb.ConfigEntry(key=e.key, value=e.value, origin=e.origin, dynamic=e.dynamic)
            for e in self.config.entries(prefix)
        ]
        return pb.GetConfigReply(revision=self.config.revision, entries=entries)

    def set_config(self, message: Any) -> Any:
        changes = dict(message.changes)
        if not changes:
            raise InvalidMessage("changes: must not be empty")
        if len(changes) > MAX_CHANGES:
            raise InvalidMessage(f"changes: {len(changes)} are more than {MAX_CHANGES}")
        for key, value in changes.items():
            text_from(key, "changes: a key")
            text_from(value, f"changes[{key}]", empty=True)
        outcome = self.config.change(changes)
        refused = [
            pb.SetConfigReply.Refusal(key=key, reason=reason)
            for key, reason in sorted(outcome.refused.items())
        ]
        return pb.SetConfigReply(revision=outcome.revision, refused=refused)

    def watch(self) -> AsyncGenerator[ClusterSnapshot, None]:
        """The state and then its changes, until `stop`.  Raises Overloaded."""
        return self._watchers.watch(self.snapshot())
