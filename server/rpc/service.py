"""gRPC's names for the coordinator's methods, and its statuses for their errors."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING, Any

import grpc
from google.protobuf.message import DecodeError

from server.rpc import cluster_pb2 as pb
from server.rpc import messages
from server.rpc.errors import (
    CoordinatorError,
    InvalidMessage,
    NotRegistered,
    Overloaded,
    Refused,
)
from server.tls.identity import Identity, Kind
from server.tls.rpc import caller_of

if TYPE_CHECKING:
    from server.rpc.coordinator import Coordinator

# A status travels in a header, percent-encoded, and clients take 8 KiB of headers.
MAX_DETAILS_BYTES = 2000

Message = Any
Context = Any  # grpc.aio.ServicerContext
Work = Callable[[Message], Message]

SERVICE = pb.DESCRIPTOR.services_by_name["Coordinator"]

_STATUS = {
    InvalidMessage: grpc.StatusCode.INVALID_ARGUMENT,
    Refused: grpc.StatusCode.FAILED_PRECONDITION,
    NotRegistered: grpc.StatusCode.NOT_FOUND,
    Overloaded: grpc.StatusCode.RESOURCE_EXHAUSTED,
}


def rpc_handlers(coordinator: Coordinator, known_callers: bool = False) -> Any:
    """The service for a gRPC server; `known_callers`: each shows a certificate, and speaks for its own node.

    Requests are parsed here and not by the generated code: gRPC answers what can't be parsed with UNKNOWN, and
    logs a traceback.
    """
    calls: dict[str, tuple[Any, Work]] = {
        "Register": (pb.RegisterRequest, coordinator.register),
        "Heartbeat": (pb.HeartbeatRequest, coordinator.heartbeat),
        "GetStatus": (pb.GetStatusRequest, coordinator.get_status),
        "GetConfig": (pb.GetConfigRequest, coordinator.get_config),
        "SetConfig": (pb.SetConfigRequest, coordinator.set_config),
        "SendTimeline": (pb.TimelineReport, coordinator.send_timeline),
        "ShipLogs": (pb.LogBatch, coordinator.ship_logs),
        "Lead": (pb.LeadRequest, coordinator.lead),
        "Drain": (pb.DrainRequest, coordinator.drain),
    }
    handlers = {
        name: grpc.unary_unary_rpc_method_handler(
            _answer(kind, work, known_callers), response_serializer=_serialize
        )
        for name, (kind, work) in calls.items()
    }
    handlers["WatchState"] = grpc.unary_stream_rpc_method_handler(
        _watch(coordinator), response_serializer=_serialize
    )
    return grpc.method_handlers_generic_handler(SERVICE.full_name, handlers)


def _answer(kind: Any, work: Work, known_callers: bool) -> Any:
    async def answer(request: bytes, context: Context) -> Message:
        try:
            message = _parse(kind, request)
            if known_callers:
                _check_caller(message, caller_of(context))
            return work(message)
        except CoordinatorError as error:
            await _abort(context, error)

    return answer


def _watch(coordinator: Coordinator) -> Any:
    async def watch(request: bytes, context: Context) -> AsyncIterator[Message]:
        try:
            _parse(pb.WatchStateRequest, request)
            async for snapshot in coordinator.watch():
                yield messages.cluster_to(snapshot)
        except CoordinatorError as error:
            await _abort(context, error)

    return watch


def _parse(kind: Any, request: bytes) -> Message:
    try:
        return kind.FromString(request)
    except DecodeError as cause:
        name = kind.DESCRIPTOR.name
        raise InvalidMessage(f"{name}: the bytes can't be read as this message") from cause


def _check_caller(message: Message, caller: Identity | None) -> None:
    """Raises Refused if the message is a node's, and the caller is somebody else."""
    if "node" not in message.DESCRIPTOR.fields_by_name:
        return
    if caller != Identity(Kind.NODE, message.node):
        holder = caller or "nobody of the cluster"
        raise Refused(f"the certificate is of {holder}, not of node {message.node}")


def _serialize(message: Message) -> bytes:
    data: bytes = message.SerializeToString()
    return data


async def _abort(context: Context, error: CoordinatorError) -> None:
    """End the call: abort() raises."""
    details = str(error).encode()[:MAX_DETAILS_BYTES].decode(errors="ignore")
    await context.abort(_STATUS[type(error)], details)
