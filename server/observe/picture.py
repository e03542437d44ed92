"""What viewers of a cluster are shown: one JSON document, with no text of any request."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from operator import attrgetter

from pipeline.engine_stats import EngineStats
from server.node.cluster_routes import Body, ClusterView, memory_body, status_of
from server.observe.alerts import Alert
from server.observe.flight import Flight
from server.observe.requests import RequestBook
from server.rpc.records import LEADER, ClusterSnapshot, RankSnapshot

RATE_GAP_S = 0.5
STALE_S = 10.0  # a look so long ago tells nothing of now
LOAD_GAP_S = 0.2  # between two reports that a load is taken from


@dataclass(frozen=True)
class _Work:
    """How much a stage had computed when it said so."""

    at: float  # monotonic seconds
    compute_s: float


class Loads:
    """The share of time for which each stage computes, from one report to the next."""

    def __init__(self) -> None:
        self._last: dict[int, _Work] = {}
        self._loads: dict[int, float] = {}

    def of(self, rank: RankSnapshot, now: float) -> float | None:
        """0 to 1; None until two reports are there."""
        stage = rank.report and rank.report.stage
        if not stage:
            return None
        seen = _Work(now - rank.heartbeat_age_s, stage.compute_s)
        before = self._last.setdefault(rank.rank, seen)
        gap = seen.at - before.at
        if gap > STALE_S:  # nobody has looked meanwhile
            self._last[rank.rank] = seen
            self._loads.pop(rank.rank, None)
        elif gap >= LOAD_GAP_S:
            self._loads[rank.rank] = min(1.0, max(0.0, seen.compute_s - before.compute_s) / gap)
            self._last[rank.rank] = seen
        return self._loads.get(rank.rank)


class Rate:
    """How fast a counter rises between two looks that are RATE_GAP_S apart."""

    def __init__(self) -> None:
        self._before: tuple[float, int] | None = None
        self._rate: float | None = None

    def of(self, count: int, now: float) -> float | None:
        """Per second; None at the first look, and after a long time without one."""
        at, counted = self._before or (-math.inf, 0)
        if now - at > STALE_S:
            self._before, self._rate = (now, count), None
        elif now - at >= RATE_GAP_S:
            self._before, self._rate = (now, count), max(0, count - counted) / (now - at)
        return self._rate


class Picture:
    """Called for each picture; keeps what is needed to tell rates."""

    def __init__(
        self,
        view: ClusterView,
        book: RequestBook,
        engine_stats: Callable[[], EngineStats | None],
        admitted: Callable[[], frozenset[str]],
    ) -> None:
        """`engine_stats`: None until there is an engine; `admitted`: see Engine.admitted."""
        self._view, self._book = view, book
        self._engine_stats, self._admitted = engine_stats, admitted
        self._loads, self._prompt_rate = Loads(), Rate()

    def __call__(self) -> Body:
        view, now = self._view, self._book.now
        snapshot, stats = view.snapshot(), view.engine_stats()
        alerts = view.alerts(snapshot)
        status, reason = status_of(view, snapshot, stats, alerts)
        engine = self._engine_stats()
        return {
            "time": time.time(),
            "name": view.name,
            "model": view.model,
            "version": view.version,
            "uptime_s": view.uptime_s(),
            "epoch": snapshot.epoch,
            "size": snapshot.size,
            "ready": snapshot.ready,
            "status": status,
            "reason": reason,
            "leader": _leader(snapshot),
            "missing_ranks": list(snapshot.missing),
            "nodes": [self._node(rank, now) for rank in snapshot.ranks],
            "tokens_per_s": {
                "generated": self._book.rate.per_second(now),
                "prompt": None
                if engine is None
                else self._prompt_rate.of(engine.prompt_tokens, now),
            },
            "queue": {"running": stats.running, "waiting": stats.waiting},
            "time_to_first_token_s": _spread(self._book.first_token),
            "requests": requests_body(self._book.flights, self._admitted(), now),
            "alerts": [alert_body(alert) for alert in alerts],
            "scheduling": view.scheduling(),
            "config_revision": snapshot.config_revision,
        }

    def _node(self, rank: RankSnapshot, now: float) -> Body:
        registration, report = rank.registration, rank.report
        first, last = registration.layers
        body: Body = {
            "rank": rank.rank,
            "node": rank.node,
            "host": registration.host,
            "pid": registration.pid,
            "leader": rank.rank == LEADER,
            "layers": {"first": first, "last": last, "count": last - first + 1},
            "num_layers": registration.num_layers,
            "state": rank.state.value,
            "reason": rank.reason,
            "heartbeat_age_s": rank.heartbeat_age_s,
            "load": self._loads.of(rank, now),
        }
        if report is None:
            return body
        return {
            **body,
            "load_progress": report.load_progress,
            "parameter_bytes": report.parameter_bytes or None,
            "gpu_memory": memory_body(report.memory),
            "resources": report.resources and asdict(report.resources),
            "stage": report.stage and asdict(report.stage),
            "sequences": report.sequences,
            "last_step_age_s": report.last_step_age_s,
            "counters": report.counters and asdict(report.counters),
        }


def requests_body(flights: Sequence[Flight], admitted: frozenset[str], now: float) -> list[Body]:
    """HTTP requests in flight; the sequences of one are summed up."""
    ordered = sorted(flights, key=attrgetter("group"))
    bodies = [
        _request_body(group, list(members), admitted, now)
        for group, members in groupby(ordered, key=attrgetter("group"))
    ]
    return sorted(bodies, key=lambda body: -float(str(body["age_s"])))


def _request_body(
    group: str, members: Sequence[Flight], admitted: frozenset[str], now: float
) -> Body:
    states = {_state(flight, admitted) for flight in members}
    furthest = next(state for state in ("decode", "prefill", "queued") if state in states)
    return {
        "id": group,
        "principal": members[0].caller.principal.name,
        "state": furthest,
        "sequences": len(members),
        "prompt_tokens": sum(len(flight.request.prompt) for flight in members),
        "output_tokens": sum(flight.tokens + len(flight.request.emitted) for flight in members),
        "max_tokens": sum(flight.request.max_tokens for flight in members),
        "age_s": now - min(flight.began for flight in members),
    }


def _state(flight: Flight, admitted: frozenset[str]) -> str:
    if flight.tokens:
        return "decode"
    return "prefill" if flight.request.id in admitted else "queued"


def alert_body(alert: Alert) -> Body:
    return {**asdict(alert), "message": alert.message}


def _leader(snapshot: ClusterSnapshot) -> Body:
    node = next((rank.node for rank in snapshot.ranks if rank.rank == LEADER), None)
    return {"rank": LEADER, "node": node}


def _spread(values: Iterable[float]) -> Body:
    """Of the latest requests, None before the first."""
    known = sorted(values)
    if not known:
        return {"p50": None, "p95": None, "requests": 0}
    at_95 = known[min(len(known) - 1, int(0.95 * len(known)))]
    return {"p50": statistics.median(known), "p95": at_95, "requests": len(known)}
