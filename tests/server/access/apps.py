"""All applications that listen anywhere, as they are in a running cluster, over a fake engine."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from starlette.applications import Starlette
from starlette.routing import BaseRoute, Mount, Route

from config import load
from launcher.admin import admin_routes
from launcher.frontdoor.door import FrontDoor
from launcher.hostfile import local_hostfile
from launcher.logs import LogStream
from launcher.nodes import Cluster, Member
from launcher.starter import Launch
from launcher.supervisor import Supervisor
from server.access.middleware import Guard
from server.access.policy import AccessPolicy
from server.api.app import create_app
from server.leader import Leader
from server.node.health import NodeView, health_app
from server.rpc.records import RankReport, RankState
from tests.server.api.fakes import FakeEngine, Script, ids, make_service


def node_view() -> NodeView:
    return NodeView(
        rank=0,
        node="mini1",
        size=3,
        model="tiny",
        version="0",
        layers=lambda: (0, 1),
        report=lambda: RankReport(RankState.READY),
        uptime_s=lambda: 1.0,
    )


def rank_0_app(guard: Guard | None = None, engine: FakeEngine | None = None) -> Starlette:
    """The API with every route that the leader adds."""
    meeting: Any = SimpleNamespace(epoch=1, size=1, rank=0)
    placement: Any = SimpleNamespace(meeting=meeting)
    leader = Leader(load(None, {}), placement, node_view(), tls=None)
    leader.observatory.close()  # a feed without an end would be waited for
    engine = engine or FakeEngine(Script(ids("hello world")))
    return create_app(make_service(engine), leader.routes, guard)


def node_health_app(guard: Guard | None = None) -> Starlette:
    return health_app(node_view(), guard)


@cache
def _admin_routes() -> list[Route]:
    """Of a launcher that has started nothing."""
    settings = load(None, {})
    everywhere = json.loads(local_hostfile(3))
    members = zip(settings.config.nodes_of(3), everywhere, strict=True)
    cluster = Cluster(tuple(Member(node, entry) for node, entry in members), {})
    launch = Launch(Path(), "ring", 0, 0.0, (), lambda more: settings, Path())
    nowhere = LogStream(out=io.StringIO(), error=io.StringIO())
    return admin_routes(Supervisor(launch, settings, cluster, nowhere))


class _Door(FrontDoor):
    def __init__(self, guard: Guard) -> None:
        super().__init__(load(None, {}).config, _admin_routes())
        self._given = guard

    def _guard(self) -> Guard:
        return self._given


def front_door_app(guard: Guard | None = None) -> Starlette:
    """The launcher's, without any leader; what it does not answer itself it passes on to rank 0."""
    return _Door(guard or Guard(AccessPolicy())).app()


APPS = {"rank 0": rank_0_app, "health port": node_health_app, "front door": front_door_app}


def routes_of(app: Starlette) -> Iterator[tuple[str, str]]:
    """Method and path of everything that an application answers to."""
    yield from _walk(app.routes, "")


def _walk(routes: list[BaseRoute], prefix: str) -> Iterator[tuple[str, str]]:
    for route in routes:
        if isinstance(route, Mount) and not (route.path or route.routes):
            continue  # the front door passes everything on to rank 0, whose routes are walked as well
        if isinstance(route, Mount):
            yield from _walk(route.routes, prefix + route.path)
            if not route.routes:  # an application that is not looked into: static files
                yield "GET", f"{prefix}{route.path}/{{path:path}}"
        else:
            assert isinstance(route, Route), f"{route} is of a kind that no rule is made for"
            for method in sorted(route.methods or {"*"}):
                if method != "HEAD":  # asked for as GET
                    yield method, prefix + route.path
