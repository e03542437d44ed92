"""Rank 0's application over a fake engine, with a guard that counts and writes down."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx

from config.access import AuditConfig, LimitsConfig, RoleLimits
from server.access.audit import AuditLog
from server.access.limits import Limiter
from server.access.middleware import Guard
from server.access.policy import AccessPolicy
from server.access.store import KeyStore
from tests.server.access.apps import rank_0_app
from tests.server.api.fakes import FakeEngine, Script, ids

CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}]}


class Rank0:
    """The application with a guard, and a client at an address."""

    def __init__(self, path: Path, **policy: Any) -> None:
        self.engine = FakeEngine(Script(ids("hello world")))
        self.audit_file = path.parent / "audit.jsonl"
        self.guard = Guard(
            AccessPolicy(KeyStore(path), **policy),
            Limiter(LimitsConfig(user=RoleLimits(requests_per_minute=1000)), places=4),
            AuditLog(AuditConfig(file=str(self.audit_file))),
        )
        self.app = rank_0_app(self.guard, self.engine)

    def client(self, key: str = "", address: str = "203.0.113.7") -> httpx.AsyncClient:
        transport = httpx.ASGITransport(
            self.app, raise_app_exceptions=False, client=(address, 4711)
        )
        headers = {"authorization": f"Bearer {key}"} if key else {}
        return httpx.AsyncClient(transport=transport, base_url="http://localhost", headers=headers)

    def audit(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.audit_file.read_text().splitlines()]
