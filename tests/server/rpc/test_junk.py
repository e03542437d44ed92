"""What anybody may send to the coordinator's port: bytes through a channel that knows no messages."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from typing import Any

import grpc
import pytest

import config
from server.rpc import cluster_pb2 as pb
from server.rpc import messages
from server.rpc.coordinator import Coordinator
from server.rpc.fields import MAX_TEXT
from server.rpc.records import HealthPolicy, RankState
from server.rpc.registry import ClusterRegistry
from server.rpc.runtime_settings import RuntimeSettings
from server.rpc.service import SERVICE, rpc_handlers
from tests.server.rpc.samples import heartbeat, registration

pytestmark = pytest.mark.anyio

METHODS = [method.name for method in SERVICE.methods]
REGISTRATION = messages.registration_to(registration(0)).SerializeToString()
HEARTBEAT = messages.heartbeat_to(heartbeat(0)).SerializeToString()
MINUS_ONE = b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01"  # as a varint, also 2**64 - 1
ANSWERS = {"OK", "INVALID_ARGUMENT", "FAILED_PRECONDITION", "NOT_FOUND"}


@dataclass
class Wire:
    """A running coordinator, and calls without any serializer."""

    coordinator: Coordinator
    channel: Any
    settings: RuntimeSettings

    async def call(self, method: str, request: bytes) -> tuple[str, str]:
        """Name and details of the status; a stream is left after its first message."""
        path = f"/{SERVICE.full_name}/{method}"
        try:
            if method == "WatchState":
                stream = self.channel.unary_stream(path)(request, timeout=10)
                await stream.read()
                stream.cancel()
            else:
                await self.channel.unary_unary(path)(request, timeout=10)
        except grpc.aio.AioRpcError as error:
            return error.code().name, error.details()
        return "OK", ""


@pytest.fixture
async def wire(caplog: pytest.LogCaptureFixture) -> AsyncIterator[Wire]:
    settings = RuntimeSettings(config.load(None, {}), lambda _: None)
    coordinator = Coordinator(ClusterRegistry(7, 3, HealthPolicy(60, 3)), settings)
    port = await coordinator.start("127.0.0.1", 0)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield Wire(coordinator, channel, settings)
        assert (await channel.unary_unary(f"/{SERVICE.full_name}/GetStatus")(b"")) != b""
    await coordinator.stop(1.0)
    assert [record for record in caplog.records if record.exc_info] == []


def test_every_method_of_the_service_is_served() -> None:
    settings = RuntimeSettings(config.load(None, {}), lambda _: None)
    served = rpc_handlers(Coordinator(ClusterRegistry(7, 3, HealthPolicy()), settings))

    @dataclass
    class Details:
        method: str

    for name in METHODS:
        assert served.service(Details(f"/{SERVICE.full_name}/{name}")) is not None, name


@pytest.mark.parametrize("method", METHODS)
async def test_bytes_that_are_no_message(wire: Wire, method: str) -> None:
    name = SERVICE.methods_by_name[method].input_type.name
    for junk in (b"\xff\xff\xff garbage", b"\x0a\x7f", b"GET / HTTP/1.1\r\n\r\n" * 99):
        assert await wire.call(method, junk) == (
            "INVALID_ARGUMENT",
            f"{name}: the bytes can't be read as this message",
        )


@pytest.mark.parametrize("method", METHODS)
async def test_random_bytes_never_end_in_an_unknown_error(wire: Wire, method: str) -> None:
    """Also valid messages with some bytes changed, which reach the checks of fields."""
    choose = random.Random(method)
    valid = {"Register": REGISTRATION, "Heartbeat": HEARTBEAT}.get(method, b"\x0a\x03abc")
    for _ in range(150):
        changed = bytearray(valid)
        for _ in range(choose.randint(1, 4)):
            changed[choose.randrange(len(changed))] = choose.randrange(256)
        for request in (bytes(changed), choose.randbytes(choose.randint(0, 40))):
            status, details = await wire.call(method, request)
            assert status in ANSWERS, (status, details, request)


def changed(message: Any, **changes: Any) -> bytes:
    for name, value in changes.items():
        message.ClearField(name)
        if isinstance(value, (int, float, str)):
            setattr(message, name, value)
    return bytes(message.SerializeToString())


def register(**changes: Any) -> bytes:
    return changed(messages.registration_to(registration(0)), **changes)


def beat(**changes: Any) -> bytes:
    return changed(messages.heartbeat_to(heartbeat(0)), **changes)


def change(*pairs: tuple[str, str]) -> bytes:
    return bytes(pb.SetConfigRequest(changes=dict(pairs)).SerializeToString())


JUNK = {
    "nothing": ("Register", b"", "size: 0 is not between 1 and 1024"),
    "negative rank": ("Register", REGISTRATION + b"\x10" + MINUS_ONE, "rank: 4294967295 is not"),
    "negative size": ("Register", REGISTRATION + b"\x18" + MINUS_ONE, "size: 4294967295 is not"),
    "text that is no UTF-8": ("Register", REGISTRATION + b"\x22\x02\xff\xfe", "RegisterRequest: "),
    "no ports": ("Register", register(ports=None), "ports.inference: 0 is not between 1 and 65535"),
    "no versions": ("Register", register(versions=None), "versions.python: must not be empty"),
    "no host": ("Register", register(host=None), "host: must not be empty"),
    "a long name": ("Register", register(node="n" * 1025), "node: longer than 1024 characters"),
    "layers backwards": (
        "Register",
        register(layer_start=9, layer_end=3),
        "layer_end: 3 is not above layer_start 9",
    ),
    "more layers than there are": (
        "Register",
        register(layer_end=2**32 - 1),
        "layer_end: 4294967295 is above num_layers 28",
    ),
    "no state": ("Heartbeat", b"", "state: 0 is not a known state"),
    "a negative state": ("Heartbeat", HEARTBEAT + b"\x20" + MINUS_ONE, "state: -1 is not a known"),
    "an unknown state": ("Heartbeat", beat(state=77), "state: 77 is not a known state"),
    "dead": ("Heartbeat", beat(state=pb.RANK_STATE_DEAD), "state: only the coordinator"),
    "a huge rank": ("Heartbeat", beat(rank=2**32 - 1), "rank: 4294967295 is not below 1024"),
    "no node": ("Heartbeat", beat(node=None), "node: must not be empty"),
    "too much progress": ("Heartbeat", beat(load_progress=1.01), "load_progress: 1.01 is above 1"),
    "infinite age": ("Heartbeat", beat(last_step_age_s=float("inf")), "last_step_age_s: inf is"),
    "a long reason": ("Heartbeat", beat(reason="r" * 1025), "reason: longer than 1024 characters"),
    "a long prefix": (
        "GetConfig",
        pb.GetConfigRequest(prefix="p" * 1025).SerializeToString(),
        "prefix: longer than 1024 characters",
    ),
    "no changes": ("SetConfig", b"", "changes: must not be empty"),
    "no key": ("SetConfig", change(("", "1")), "changes: a key: must not be empty"),
    "a long key": ("SetConfig", change(("k" * 1025, "1")), "changes: a key: longer than 1024"),
    "a long value": (
        "SetConfig",
        change(("api_gateway.timeout", "1" * 1025)),
        "changes[api_gateway.timeout]: longer than 1024 characters",
    ),
    "many changes": (
        "SetConfig",
        change(*((str(n), "1") for n in range(65))),
        "changes: 65 are more than 64",
    ),
}


@pytest.mark.parametrize("case", JUNK)
async def test_junk_is_refused_naming_the_field(wire: Wire, case: str) -> None:
    method, request, complaint = JUNK[case]
    status, details = await wire.call(method, request)
    assert status == "INVALID_ARGUMENT"
    assert details.startswith(complaint)


async def test_huge_numbers_that_mean_nothing_are_only_shown(wire: Wire) -> None:
    """Counters and bytes are passed on as they are; nothing is computed from them."""
    assert await wire.call("Register", REGISTRATION) == ("OK", "")
    assert await wire.call("Heartbeat", HEARTBEAT + b"\x38" + MINUS_ONE + b"\x60" + MINUS_ONE) == (
        "OK",
        "",
    )
    [rank] = wire.coordinator.snapshot().ranks
    assert rank.state is RankState.READY
    assert rank.report is not None
    assert rank.report.parameter_bytes == rank.config_revision == 2**64 - 1
    assert await wire.call("GetStatus", b"") == ("OK", "")


async def test_a_refusal_that_quotes_long_names_reaches_the_caller(wire: Wire) -> None:
    """A status has to fit into a header, percent-encoded."""
    long = "\N{GRINNING FACE}" * MAX_TEXT
    for rank, status in ((0, "OK"), (1, "FAILED_PRECONDITION")):
        record = replace(
            registration(rank), node=f"{rank}{long}"[:-1], model=long, fingerprint=f"{rank}"
        )
        request = messages.registration_to(record).SerializeToString()
        answer, details = await wire.call("Register", request)
        assert answer == status
    assert details.startswith("rank 1 (1\N{GRINNING FACE}")


@pytest.mark.parametrize(
    "value",
    [
        "[" * 1000,
        "{a: " * 200,
        "- " * 500,
        "9" * 1000,
        "0x" + "f" * 1000,
        "-1",
        "1e400",
        ".nan",
        "\0",
        "*x",
        "&a [*a]",
        "!!python/object:os.system x",
        "a: b: c",
        "",
    ],
)
async def test_values_that_are_no_number_are_refused_by_key(wire: Wire, value: str) -> None:
    dynamic = [entry.key for entry in wire.settings.entries() if entry.dynamic]
    assert len(dynamic) > 3
    in_force = wire.settings.settings
    for key in dynamic:
        path = f"/{SERVICE.full_name}/SetConfig"
        reply = await wire.channel.unary_unary(path)(change((key, value)), timeout=10)
        [refusal] = pb.SetConfigReply.FromString(reply).refused
        assert refusal.key == key
        assert key in refusal.reason
    assert wire.settings.settings is in_force
