"""Which role each route and each gRPC method needs.  What stands here is all that can be reached.

Enter each new route: a test walks through the routes of all applications and fails for one that is missing.
Paths are written as Starlette's routes are.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from re import Pattern

from starlette.routing import compile_path

from server.access.principal import Role

OPEN = None  # whoever reaches the port: for load balancers, and for whoever watches a rank


@dataclass(frozen=True)
class Rule:
    """One method of one path.

    inference: it makes or counts tokens, so all limits apply; counted: it is one of the requests of a minute.
    """

    method: str
    path: str
    role: Role | None
    inference: bool = False
    counted: bool = False
    pattern: Pattern[str] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "pattern", compile_path(self.path)[0])


def _inference(path: str) -> Rule:
    return Rule("POST", path, Role.USER, inference=True, counted=True)


HTTP_RULES: tuple[Rule, ...] = (
    Rule("GET", "/health", OPEN),
    Rule("GET", "/ready", OPEN),
    # The page itself, so that a key can be typed into it; what it shows needs that key.
    Rule("GET", "/", OPEN),
    Rule("GET", "/dashboard/about.json", OPEN),
    Rule("GET", "/dashboard/{name}", OPEN),
    Rule("GET", "/v1/access", Role.VIEWER),
    Rule("GET", "/metrics", Role.VIEWER),
    Rule("GET", "/v1/cluster", Role.VIEWER),
    Rule("GET", "/v1/cluster/events", Role.VIEWER),
    Rule("GET", "/v1/cluster/timeline", Role.VIEWER),
    Rule("GET", "/v1/cluster/logs", Role.OPERATOR),
    Rule("GET", "/v1/cluster/config", Role.OPERATOR),
    Rule("PATCH", "/v1/cluster/config", Role.OPERATOR),
    # Of one's own; an operator ends those of others too.
    Rule("DELETE", "/v1/requests/{request_id:path}", Role.USER),
    Rule("GET", "/v1/models", Role.VIEWER),
    Rule("GET", "/v1/models/{model_id:path}", Role.VIEWER),
    Rule("GET", "/openapi.json", Role.VIEWER),
    Rule("GET", "/admin/status", Role.VIEWER),
    Rule("POST", "/admin/drain", Role.OPERATOR),
    Rule("POST", "/admin/undrain", Role.OPERATOR),
    Rule("POST", "/admin/restart", Role.OPERATOR),
    Rule("POST", "/admin/lead", Role.OPERATOR),
    Rule("GET", "/admin/models/switch", Role.VIEWER),
    Rule("POST", "/admin/models/switch", Role.OPERATOR),
    _inference("/tokenize"),
    _inference("/detokenize"),
    _inference("/v1/embeddings"),
    _inference("/v1/chat/completions"),
    _inference("/v1/completions"),
    _inference("/v1/responses"),
    _inference("/v1/messages"),
    _inference("/v1/responses/input_tokens"),
    _inference("/v1/responses/compact"),
    Rule("GET", "/v1/responses/{response_id}", Role.USER, counted=True),
    Rule("DELETE", "/v1/responses/{response_id}", Role.USER, counted=True),
    Rule("GET", "/v1/responses/{response_id}/input_items", Role.USER, counted=True),
    _inference("/v1/messages/count_tokens"),
)


@dataclass(frozen=True)
class RpcRule:
    """One method of the coordinator: the role of a key, and whether ranks call it with the cluster's secret."""

    method: str
    role: Role | None  # None: no key opens it
    ranks: bool = False


RPC_RULES: tuple[RpcRule, ...] = (
    RpcRule("Register", None, ranks=True),
    RpcRule("Heartbeat", None, ranks=True),
    RpcRule("GetStatus", Role.VIEWER, ranks=True),
    RpcRule("WatchState", Role.VIEWER, ranks=True),
    RpcRule("GetConfig", Role.OPERATOR, ranks=True),
    RpcRule("SetConfig", Role.OPERATOR),
    RpcRule("SendTimeline", None, ranks=True),
    RpcRule("ShipLogs", None, ranks=True),
    RpcRule("Lead", Role.OPERATOR),
    RpcRule("Drain", Role.OPERATOR),
)


class RouteTable:
    """Finds the rule of a request."""

    def __init__(self, rules: Iterable[Rule] = HTTP_RULES) -> None:
        self._rules = tuple(rules)

    def find(self, method: str, path: str) -> Rule | None:
        """The first rule for it; HEAD is asked as GET."""
        method = "GET" if method == "HEAD" else method
        return next((r for r in self._rules if r.method == method and r.pattern.match(path)), None)

    def methods(self, path: str) -> tuple[str, ...]:
        """Methods that the path has rules for."""
        return tuple(rule.method for rule in self._rules if rule.pattern.match(path))


RPC_TABLE = {rule.method: rule for rule in RPC_RULES}
