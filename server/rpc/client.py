"""A rank's side of the control plane.  Every call has a deadline, every failure a type."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncGenerator, Callable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

import grpc

from server.access.rpc import Credential, client_interceptors
from server.rpc import cluster_pb2 as pb
from server.rpc import cluster_pb2_grpc, measures, messages
from server.rpc.channel import CLIENT_OPTIONS
from server.rpc.clock import ClockOffset
from server.rpc.config_store import ConfigChange, ConfigEntry
from server.rpc.errors import (
    CoordinatorError,
    CoordinatorLost,
    InvalidMessage,
    NotAllowed,
    NotRegistered,
    Overloaded,
    Refused,
)
from server.rpc.listen import join
from server.rpc.records import (
    ClusterSnapshot,
    HealthPolicy,
    Heartbeat,
    LogBatch,
    RankReport,
    Registration,
    TimelineOrder,
    TimelineReport,
)
from server.tls.rpc import ClientTls

_ERRORS: dict[Any, type[CoordinatorError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: InvalidMessage,
    grpc.StatusCode.FAILED_PRECONDITION: Refused,
    grpc.StatusCode.NOT_FOUND: NotRegistered,
    grpc.StatusCode.RESOURCE_EXHAUSTED: Overloaded,
    grpc.StatusCode.UNAUTHENTICATED: NotAllowed,
    grpc.StatusCode.PERMISSION_DENIED: NotAllowed,
}

ConfigListener = Callable[[int, Mapping[str, str]], None]
TimelineListener = Callable[[TimelineOrder], None]


@dataclass(frozen=True)
class HeartbeatReply:
    """What the coordinator tells a rank with every answer."""

    config_revision: int
    config_changes: Mapping[str, str]  # to apply; empty when the rank is up to date
    policy: HealthPolicy
    timeline: TimelineOrder | None = None  # to be recorded; repeated until it is over


class CoordinatorClient:
    """Talks to the coordinator at host:port, connecting when first used, until `close`.

    To be made inside the asyncio loop that uses it.  All times in seconds.
    """

    def __init__(
        self,
        host: str,
        port: int,
        call_timeout_s: float = 5.0,
        retry_initial_s: float = 0.2,
        retry_max_s: float = 5.0,
        credential: Credential | None = None,
        tls: ClientTls | None = None,
    ) -> None:
        """`credential`: what is sent along with each call, if anything; `tls`: None for plain connections."""
        self.target = join(host, port)
        self._backoff = retry_initial_s, retry_max_s
        self._timeout_s = call_timeout_s
        self._channel = _channel(self.target, client_interceptors(credential), tls)
        self._stub: Any = cluster_pb2_grpc.CoordinatorStub(self._channel)
        self._own: Callable[[Any], Any] | None = None
        self._wake = asyncio.Event()
        self.clock = ClockOffset()  # of the coordinator

    async def register(self, registration: Registration, deadline_s: float) -> HealthPolicy:
        """Register, trying again until `deadline_s` seconds have passed while nobody answers.

        Returns how often to send heartbeats.  Raises Refused or InvalidMessage at once when the
        coordinator does not want this rank, CoordinatorLost when the time is over.
        """
        loop = asyncio.get_running_loop()
        message = messages.registration_to(registration)
        end = loop.time() + deadline_s
        backoff = Backoff(*self._backoff)
        while True:
            remaining = end - loop.time()
            try:
                reply = await self._call(
                    self._stub.Register, message, min(self._timeout_s, max(remaining, 0.001))
                )
                return messages.policy_from(reply.policy)
            except (CoordinatorLost, Overloaded) as cause:
                wait = backoff.next()
                if loop.time() + wait >= end:
                    raise CoordinatorLost(
                        f"no coordinator at {self.target} within {deadline_s:g} s: {cause}"
                    ) from cause
                await asyncio.sleep(wait)

    async def heartbeat(self, beat: Heartbeat) -> HeartbeatReply:
        """Send one heartbeat."""
        asked, message = time.time(), messages.heartbeat_to(beat)
        if self._own is not None:
            reply = self._own(message)
        else:
            reply = await self._call(self._stub.Heartbeat, message, self._timeout_s)
        self.clock.observe(asked, reply.time_s, time.time())
        return HeartbeatReply(
            reply.config_revision,
            dict(reply.config_changes),
            messages.policy_from(reply.policy),
            measures.order_from(reply),
        )

    def beat_here(self, answer: Callable[[Any], Any]) -> None:
        """The coordinator lives in this process, and takes its heartbeats by `answer` from now on.

        A call through gRPC wakes a dozen threads on either side, which is most of what an idle rank 0 does.
        """
        self._own = answer

    async def ship_logs(self, batch: LogBatch) -> None:
        """Send log lines of this rank."""
        await self._call(self._stub.ShipLogs, measures.logs_to(batch), self._timeout_s)

    async def send_timeline(self, report: TimelineReport) -> None:
        """Send what this rank recorded, or a part of it.  Raises Refused when nobody wants it any more."""
        await self._call(self._stub.SendTimeline, measures.timeline_to(report), self._timeout_s)

    async def run_heartbeats(
        self,
        registration: Registration,
        policy: HealthPolicy,
        report: Callable[[], RankReport],
        on_config: ConfigListener,
        on_timeline: TimelineListener = lambda _: None,
    ) -> NoReturn:
        """Send a heartbeat every interval, and at once after `report_soon`, until cancelled.

        `report` is called for each; `on_config(revision, changes)` when values have been changed,
        `changes` being all changes since the start; `on_timeline(order)` with every answer that has an order,
        so that it may get one several times.  Raises CoordinatorLost after `policy.patience_s`
        seconds without an answer, Refused when the coordinator does not know this rank any more: the
        rank must exit on either.
        """
        loop = asyncio.get_running_loop()
        answered = loop.time()
        revision = 0
        while True:
            self._wake.clear()
            try:
                reply = await self.heartbeat(_beat(registration, report(), revision))
            except (CoordinatorLost, Overloaded) as cause:
                silent = loop.time() - answered
                if silent >= policy.patience_s:
                    raise CoordinatorLost(
                        f"the coordinator at {self.target} was silent for {silent:.0f} s: {cause}"
                    ) from cause
            else:
                answered, policy = loop.time(), reply.policy
                if reply.config_revision != revision:
                    on_config(reply.config_revision, reply.config_changes)
                    revision = reply.config_revision
                if reply.timeline is not None:
                    on_timeline(reply.timeline)
            await self._pause(policy.interval_s)

    def report_soon(self) -> None:
        """Make `run_heartbeats` report at once, after a change of state that others wait for."""
        self._wake.set()

    async def status(self) -> ClusterSnapshot:
        """The cluster as the coordinator sees it."""
        reply = await self._call(self._stub.GetStatus, pb.GetStatusRequest(), self._timeout_s)
        return messages.cluster_from(reply)

    async def watch(self) -> AsyncGenerator[ClusterSnapshot, None]:
        """The state, then its changes, until the coordinator stops; to be closed by who leaves earlier.

        Raises CoordinatorLost, or Overloaded when too many watch.
        """
        stream = self._stub.WatchState(pb.WatchStateRequest())
        try:
            async for message in stream:
                yield messages.cluster_from(message)
        except grpc.aio.AioRpcError as cause:
            raise _error(cause) from cause
        finally:
            stream.cancel()

    async def get_config(self, prefix: str = "") -> list[ConfigEntry]:
        """The values at or below `prefix`; all of them when it is empty."""
        request = pb.GetConfigRequest(prefix=prefix)
        reply = await self._call(self._stub.GetConfig, request, self._timeout_s)
        return [ConfigEntry(e.key, e.value, e.origin, e.dynamic) for e in reply.entries]

    async def set_config(self, changes: Mapping[str, str]) -> ConfigChange:
        """Change dynamic values, all or none.  Raises InvalidMessage when `changes` is empty."""
        request = pb.SetConfigRequest(changes=changes)
        reply = await self._call(self._stub.SetConfig, request, self._timeout_s)
        refused = {refusal.key: refusal.reason for refusal in reply.refused}
        return ConfigChange(reply.revision, refused)

    async def lead(self, node: str) -> int:
        """Ask the launcher to let `node` lead ("": as the strategy says); the revision of the wish.

        Raises InvalidMessage for an unknown node, Refused where no launcher runs the cluster.
        """
        reply = await self._call(self._stub.Lead, pb.LeadRequest(node=node), self._timeout_s)
        return int(reply.revision)

    async def drain(self, on: bool) -> int:
        """Ask the launcher to take no new requests, or to take them again; the revision of the wish."""
        reply = await self._call(self._stub.Drain, pb.DrainRequest(on=on), self._timeout_s)
        return int(reply.revision)

    async def close(self) -> None:
        await self._channel.close()

    async def _call(self, method: Any, message: Any, timeout_s: float) -> Any:
        try:
            return await method(message, timeout=timeout_s)
        except grpc.aio.AioRpcError as cause:
            raise _error(cause) from cause

    async def _pause(self, seconds: float) -> None:
        try:
            await asyncio.wait_for(self._wake.wait(), seconds)
        except asyncio.TimeoutError:
            return


class Backoff:
    """Waits that double up to a limit, shortened at random so that ranks don't retry in step."""

    def __init__(self, first_s: float, longest_s: float) -> None:
        self._wait_s = first_s
        self._longest_s = longest_s

    def next(self) -> float:
        """Seconds to wait before the next attempt: between half and all of the step."""
        step, self._wait_s = self._wait_s, min(self._wait_s * 2, self._longest_s)
        return step * random.uniform(0.5, 1.0)  # noqa: S311 - jitter, not a secret


def _channel(target: str, interceptors: list[Any], tls: ClientTls | None) -> Any:
    if tls is None:
        return grpc.aio.insecure_channel(target, options=CLIENT_OPTIONS, interceptors=interceptors)
    options = (*CLIENT_OPTIONS, *tls.options())
    return grpc.aio.secure_channel(
        target, tls.credentials(), options=options, interceptors=interceptors
    )


def _beat(registration: Registration, report: RankReport, config_revision: int) -> Heartbeat:
    return Heartbeat(
        registration.epoch, registration.rank, registration.node, report, config_revision
    )


def _error(cause: Any) -> CoordinatorError:
    """What the coordinator raised, or CoordinatorLost for everything below the application."""
    return _ERRORS.get(cause.code(), CoordinatorLost)(cause.details() or cause.code().name)
