"""Every method of the coordinator without, with a wrong, an expired, a too weak and a right credential."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from config.access import AccessConfig, AuditConfig
from server.access.audit import AuditLog
from server.access.cluster_secret import WINDOW_S, Signer, Verifier, ensure_secret, read_secret
from server.access.errors import AccessError, Unauthorized
from server.access.policy import AccessPolicy
from server.access.principal import Role
from server.access.roles import RPC_RULES, RpcRule
from server.access.rpc import AccessInterceptor, cluster_credential, key_credential
from server.access.store import KeyStore
from server.rpc.client import CoordinatorClient
from server.rpc.coordinator import Coordinator
from server.rpc.errors import CoordinatorError, NotAllowed
from server.rpc.records import HealthPolicy, LogBatch, TimelineReport
from server.rpc.registry import ClusterRegistry
from server.rpc.service import SERVICE
from tests.server.access.helpers import add_key
from tests.server.rpc.samples import heartbeat, registration
from tests.server.rpc.test_coordinator import TwoKeys

pytestmark = pytest.mark.anyio

SECRET, OTHER_SECRET = b"s" * 32, b"o" * 32
DEADLINE = 60.0

Call = Callable[[CoordinatorClient], Any]


async def _watch(client: CoordinatorClient) -> None:
    snapshots = client.watch()
    await anext(snapshots)
    await snapshots.aclose()


CALLS: dict[str, Call] = {
    "Register": lambda client: client.register(registration(0), DEADLINE),
    "Heartbeat": lambda client: client.heartbeat(heartbeat(0)),
    "GetStatus": lambda client: client.status(),
    "WatchState": _watch,
    "GetConfig": lambda client: client.get_config(),
    "SetConfig": lambda client: client.set_config({"scheduler.max_batch_size": "4"}),
    "SendTimeline": lambda client: client.send_timeline(TimelineReport(7, 0, "mini1", 1, ())),
    "ShipLogs": lambda client: client.ship_logs(LogBatch(7, 0, "mini1", ())),
    "Lead": lambda client: client.lead("mini2"),
    "Drain": lambda client: client.drain(True),
}


@asynccontextmanager
async def guarded(interceptor: AccessInterceptor) -> AsyncIterator[int]:
    coordinator = Coordinator(ClusterRegistry(7, 3, HealthPolicy(60, 3)), TwoKeys())
    coordinator.interceptors = [interceptor]
    port = await coordinator.start("127.0.0.1", 0)
    try:
        yield port
    finally:
        await coordinator.stop(1.0)


async def attempt(port: int, method: str, credential: Any) -> str:
    """let in, or the status."""
    client = CoordinatorClient("127.0.0.1", port, credential=credential)
    try:
        await CALLS[method](client)
    except NotAllowed as error:
        cause = error.__cause__
        assert isinstance(cause, grpc.aio.AioRpcError)
        return str(cause.code().name)
    except CoordinatorError:
        return "let in"  # refused for what the message says
    finally:
        await client.close()
    return "let in"


def test_the_table_names_what_the_service_has() -> None:
    assert sorted(CALLS) == sorted(method.name for method in SERVICE.methods)


def expected(rule: RpcRule, kind: str) -> str:
    if kind in (
        "none",
        "wrong key",
        "expired key",
        "wrong signature",
        "old signature",
        "of another method",
    ):
        return "UNAUTHENTICATED"
    if kind == "signature":
        return "let in" if rule.ranks else "UNAUTHENTICATED"
    if rule.role is None:
        return "UNAUTHENTICATED"
    return "let in" if Role.of(kind) >= rule.role else "PERMISSION_DENIED"


def credentials_in(path: Path) -> dict[str, Any]:
    """One of each kind, with keys of the file."""
    keys = {role.label: add_key(path, role.label) for role in Role}  # type: ignore[arg-type]
    return {
        "none": None,
        "wrong key": key_credential(keys["admin"][:-4] + "AAAA"),
        "expired key": key_credential(add_key(path, "admin", expires_in=-60)),
        "wrong signature": Signer(OTHER_SECRET).sign,
        "old signature": Signer(SECRET, clock=lambda: 0.0).sign,
        "of another method": lambda _: Signer(SECRET).sign("GetSomething"),
        "signature": Signer(SECRET).sign,
        **{label: key_credential(key) for label, key in keys.items()},
    }


async def test_every_method_with_every_credential(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    credentials = credentials_in(path)
    policy = AccessPolicy(KeyStore(path))
    async with guarded(AccessInterceptor(policy, Verifier(SECRET))) as port:
        for rule in RPC_RULES:
            for kind, credential in credentials.items():
                got = await attempt(port, rule.method, credential)
                assert got == expected(rule, kind), (rule.method, kind)


async def table(path: Path) -> str:
    """The results in Markdown."""
    credentials = credentials_in(path)
    lines = [f"| method | {' | '.join(credentials)} |", "|" + "---|" * (len(credentials) + 1)]
    policy = AccessPolicy(KeyStore(path))
    async with guarded(AccessInterceptor(policy, Verifier(SECRET))) as port:
        for rule in RPC_RULES:
            cells = [await attempt(port, rule.method, credentials[kind]) for kind in credentials]
            lines.append(f"| {rule.method} | {' | '.join(cells)} |")
    return "\n".join(lines)


async def test_open_where_everybody_is_let_in(tmp_path: Path) -> None:
    async with guarded(AccessInterceptor(AccessPolicy(), None)) as port:
        for method in CALLS:
            assert await attempt(port, method, None) == "let in"
            assert await attempt(port, method, Signer(SECRET).sign) == "let in"


async def test_the_first_key_closes_the_operators_methods_and_breaks_no_running_ring(
    tmp_path: Path,
) -> None:
    path = tmp_path / "keys.json"
    policy = AccessPolicy(KeyStore(path), optional=True)
    async with guarded(AccessInterceptor(policy, None)) as port:
        assert await attempt(port, "SetConfig", None) == "let in"
        add_key(path)
        assert await attempt(port, "SetConfig", None) == "UNAUTHENTICATED"
        assert await attempt(port, "Heartbeat", None) == "let in"


async def test_what_people_do_is_in_the_audit_log(tmp_path: Path) -> None:
    path, file = tmp_path / "keys.json", tmp_path / "audit"
    operator = add_key(path, "operator", name="Bob")
    audit = AuditLog(AuditConfig(file=str(file)))
    async with guarded(
        AccessInterceptor(AccessPolicy(KeyStore(path)), Verifier(SECRET), audit)
    ) as port:
        await attempt(port, "Register", Signer(SECRET).sign)
        await attempt(port, "SetConfig", key_credential(operator))
        await attempt(port, "SetConfig", None)
    entries = [json.loads(line) for line in file.read_text().splitlines()]
    shown = [(e["method"], e["route"], e["name"], e["status"], e["result"]) for e in entries]
    assert shown == [
        ("gRPC", "SetConfig", "Bob", 200, "ok"),
        ("gRPC", "SetConfig", "nobody", 401, "refused"),
    ]


async def test_a_refused_call_names_the_setting(tmp_path: Path) -> None:
    add_key(tmp_path / "keys.json")
    policy = AccessPolicy(KeyStore(tmp_path / "keys.json"))
    async with guarded(AccessInterceptor(policy, Verifier(SECRET))) as port:
        client = CoordinatorClient("127.0.0.1", port)
        with pytest.raises(NotAllowed, match=r"access\.cluster_secret_file"):
            await client.register(registration(0), DEADLINE)
        await client.close()


def test_a_signature_is_good_once_and_for_a_while() -> None:
    now = 1000.0
    signer, verifier = Signer(SECRET, lambda: now), Verifier(SECRET, lambda: now)
    signed = signer.sign("Register")
    assert SECRET.decode() not in signed
    verifier.check("Register", signed)
    with pytest.raises(Unauthorized, match="used before"):
        verifier.check("Register", signed)
    early, late = signer.sign("Register"), signer.sign("Register")
    now += WINDOW_S
    verifier.check("Register", early)
    now += 1
    with pytest.raises(Unauthorized, match="clocks of the two nodes"):
        verifier.check("Register", late)
    now += 3 * WINDOW_S
    verifier.check("Register", signer.sign("Register"))
    assert len(verifier._seen) == 1  # the old ones are forgotten


@pytest.mark.parametrize(
    "value",
    [
        "",
        "cluster",
        "cluster ",
        "cluster a.b",
        "cluster a.b.c",
        "cluster 1.2.3.4",
        "cluster é.b.c",
        "Bearer x",
    ],
)
def test_what_is_no_signature(value: str) -> None:
    with pytest.raises(Unauthorized):
        Verifier(SECRET).check("Register", value)


def test_the_secret_is_made_once_and_must_be_private_and_long(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "secret"
    config = AccessConfig(cluster_secret_file=str(path))
    assert cluster_credential(config) is None
    with pytest.raises(AccessError, match=r"server\.keys secret"):
        read_secret(path)
    ensure_secret(path)
    secret = read_secret(path)
    ensure_secret(path)
    assert read_secret(path) == secret
    assert cluster_credential(config) is not None
    path.chmod(0o644)
    with pytest.raises(AccessError, match="chmod 600"):
        cluster_credential(config)
    path.chmod(0o600)
    path.write_text("short")
    with pytest.raises(AccessError, match="5 bytes are too few"):
        cluster_credential(config)
