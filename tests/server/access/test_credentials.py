"""Every route with no, a wrong, an expired, a too weak and a right credential.

`python -m tests.server.access.table` prints the results.
"""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from server.access.middleware import Guard
from server.access.policy import AccessPolicy
from server.access.principal import Role
from server.access.roles import HTTP_RULES, Rule
from server.access.store import KeyStore
from server.access.tokens import TokenVerifier
from tests.server.access.apps import APPS, routes_of
from tests.server.access.helpers import OTHER_RSA_KEY, add_key, jwt_config, token

RULES = {(rule.method, rule.path): rule for rule in HTTP_RULES}
KINDS = ("none", "wrong", "expired", "too weak", "right")
REFUSED = {
    "none": (401, "invalid_api_key"),
    "wrong": (401, "invalid_api_key"),
    "expired": (401, "token_expired"),
    "too weak": (403, "insufficient_role"),
}
BODIES: dict[str, Any] = {
    "/v1/chat/completions": {"model": "tiny", "messages": [{"role": "user", "content": "hi"}]},
    "/v1/completions": {"model": "tiny", "prompt": "hi"},
}


class Credentials:
    """One of each kind for each role, as keys and as tokens."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "keys.json"
        self.policy_of: Any = None
        roles = [role.label for role in Role]
        self.keys = {label: add_key(self.path, label) for label in roles}  # type: ignore[arg-type]
        self.expired = {
            label: add_key(self.path, label, expires_in=-60)  # type: ignore[arg-type]
            for label in roles
        }
        self.policy = AccessPolicy(KeyStore(self.path), TokenVerifier(jwt_config(folder)))

    def of(self, kind: str, role: Role, form: str) -> str | None:
        """None where there is no such credential."""
        if kind == "none":
            return ""
        if kind == "too weak":
            return self.of("right", Role(role - 1), form) if role > Role.VIEWER else None
        if form == "key":
            right = self.keys[role.label]
            wrong = right[:-4] + ("AAAA" if right[-4:] != "AAAA" else "BBBB")
            return {"right": right, "wrong": wrong, "expired": self.expired[role.label]}[kind]
        return {
            "right": lambda: token(role=role.label),
            "wrong": lambda: token(key=OTHER_RSA_KEY, role=role.label),
            "expired": lambda: token(exp=time.time() - 60, role=role.label),
        }[kind]()


async def ask(app: Any, method: str, path: str, credential: str) -> httpx.Response:
    headers = {"authorization": f"Bearer {credential}"} if credential else {}
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        real = path.replace("{model_id:path}", "tiny").replace("{path:path}", "x")
        # Whole, as httpx takes the beginning of //path for a host.
        return await client.request(
            method, f"http://test{real}", headers=headers, json=BODIES.get(path)
        )


def outcome(response: httpx.Response) -> tuple[int, str | None]:
    code = response.json()["error"]["code"] if response.status_code >= 400 else None
    return response.status_code, code


@pytest.fixture(scope="module")
def credentials(tmp_path_factory: pytest.TempPathFactory) -> Credentials:
    return Credentials(tmp_path_factory.mktemp("access"))


ROUTES = [
    pytest.param(name, *route, id=f"{name}: {' '.join(route)}")
    for name, make in APPS.items()
    for route in routes_of(make())
]


@pytest.mark.parametrize("form", ["key", "token"])
@pytest.mark.parametrize(("name", "method", "path"), ROUTES)
def test_every_route(
    credentials: Credentials, name: str, method: str, path: str, form: str
) -> None:
    app, rule = APPS[name](Guard(credentials.policy)), RULES[method, path]
    for kind in KINDS:
        credential = credentials.of(kind, rule.role or Role.VIEWER, form)
        if credential is None:
            continue
        response = asyncio.run(ask(app, method, path, credential))
        if rule.role is None or kind == "right":
            # Let in: what comes back is the application's own answer.
            assert response.status_code not in (401, 403, 405), (kind, response.text)
            # What routing says of an unknown path names it; a handler may know of nothing under this id.
            assert f"{method} {path}: " not in response.text
        else:
            assert outcome(response) == REFUSED[kind], kind
            assert response.headers["x-request-id"]
            assert response.json()["error"].keys() == {"message", "type", "param", "code"}
            assert ("www-authenticate" in response.headers) == (response.status_code == 401)
            assert not credential or credential not in response.text


@pytest.mark.parametrize("name", APPS)
def test_what_has_no_rule_is_not_shown(credentials: Credentials, name: str) -> None:
    app = APPS[name](Guard(credentials.policy))
    admin = credentials.keys["admin"]

    async def nothing(scope: Any, receive: Any, send: Any) -> None:
        pytest.fail("was reached")

    app.router.default = nothing
    for method, path, status in [
        ("GET", "/nowhere", 404),
        ("GET", "/health/", 404),
        ("GET", "//metrics", 404),
        ("POST", "/health", 405),
        ("PATCH", "/metrics", 405),
    ]:
        assert asyncio.run(ask(app, method, path, "")).status_code == 401
        response = asyncio.run(ask(app, method, path, admin))
        assert response.status_code == status, path
        assert ("allow" in response.headers) == (status == 405)


def table(folder: Path) -> str:
    """The table of results, in Markdown."""
    credentials, lines = Credentials(folder), []
    lines.append(f"| port | route | role | {' | '.join(KINDS)} |")
    lines.append("|" + "---|" * (len(KINDS) + 3))
    for name, make in APPS.items():
        app = make(Guard(credentials.policy))
        for method, path in routes_of(app):
            rule: Rule = RULES[method, path]
            cells = []
            for kind in KINDS:
                credential = credentials.of(kind, rule.role or Role.VIEWER, "key")
                if credential is None:
                    cells.append("")
                    continue
                response = asyncio.run(ask(app, method, path, credential))
                let_in = response.status_code not in (401, 403)
                cells.append("let in" if let_in else " ".join(map(str, outcome(response))))
            role = rule.role.label if rule.role else "open"
            lines.append(f"| {name} | `{method} {path}` | {role} | {' | '.join(cells)} |")
    return "\n".join(lines)
