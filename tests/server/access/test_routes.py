"""Every route and every gRPC method stands in the table of roles."""

from __future__ import annotations

import subprocess
import sys

import pytest
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Mount, Route

from server.access.principal import Role
from server.access.roles import HTTP_RULES, RPC_RULES, RouteTable
from server.rpc.service import SERVICE
from tests.server.access.apps import APPS, rank_0_app, routes_of


def missing(app: object) -> list[tuple[str, str]]:
    known = {(rule.method, rule.path) for rule in HTTP_RULES}
    return [route for route in routes_of(app) if route not in known]  # type: ignore[arg-type]


@pytest.mark.parametrize("name", APPS)
def test_every_route_has_a_rule(name: str) -> None:
    """If this fails for your new route: enter it in server/access/roles.py."""
    app = APPS[name]()
    assert list(routes_of(app))
    assert missing(app) == []


async def _nothing(request: Request) -> Response:
    return Response()


def test_a_route_without_a_rule_is_found() -> None:
    app = rank_0_app()
    app.routes.append(Route("/v1/secret", _nothing, methods=["GET", "POST"]))
    app.routes.append(Mount("/deep", routes=[Route("/er", _nothing)]))
    assert missing(app) == [("GET", "/v1/secret"), ("POST", "/v1/secret"), ("GET", "/deep/er")]


def test_every_method_of_the_coordinator_has_a_rule() -> None:
    methods = [method.name for method in SERVICE.methods]
    assert sorted(rule.method for rule in RPC_RULES) == sorted(methods)


def test_what_makes_tokens_or_changes_anything_is_not_for_viewers() -> None:
    for rule in HTTP_RULES:
        if rule.method != "GET" or rule.inference:
            assert rule.role is not None
            assert rule.role > Role.VIEWER, rule
        if rule.path.startswith("/admin"):
            assert rule.role is not None
            assert rule.role >= Role.VIEWER, rule


def test_no_rule_stands_twice() -> None:
    pairs = [(rule.method, rule.path) for rule in HTTP_RULES]
    assert len(pairs) == len(set(pairs))


@pytest.mark.parametrize(
    ("method", "path", "found"),
    [
        ("GET", "/v1/models/owner/name", "/v1/models/{model_id:path}"),
        ("HEAD", "/health", "/health"),
        ("GET", "/health/", None),
        ("GET", "//health", None),
        ("get", "/health", None),
        ("POST", "/health", None),
        ("GET", "/v1/models/../../admin", "/v1/models/{model_id:path}"),
    ],
)
def test_finding(method: str, path: str, found: str | None) -> None:
    rule = RouteTable().find(method, path)
    assert (rule and rule.path) == found


def test_access_needs_no_mlx_and_no_engine() -> None:
    """The launcher imports it."""
    code = (
        "import sys, server.access.startup, server.keys\n"
        "bad = [m for m in sys.modules if m.split('.')[0] in ('mlx', 'mlx_lm', 'pipeline')]\n"
        "assert not bad, bad"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
