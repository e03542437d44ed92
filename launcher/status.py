"""The launcher's status: one document for the admin route, the health route and the terminal."""

from __future__ import annotations

import os
import time
from datetime import timedelta
from importlib.metadata import version
from typing import Any

from launcher.breaker import Record
from launcher.decide import Phase
from launcher.node_notes import why_out
from launcher.supervisor import Supervisor

Document = dict[str, Any]


def status_of(supervisor: Supervisor) -> Document:
    """What `GET /admin/status` answers."""
    config, epoch, door = supervisor.config, supervisor.epoch, supervisor.door
    state, reason = _state(supervisor)
    return {
        "object": "launcher",
        "version": version("mlx-cluster"),
        "pid": os.getpid(),
        "uptime_s": round(time.monotonic() - supervisor.started, 1),
        "cluster": config.cluster.name,
        "state": state,
        "reason": reason,
        "draining": supervisor.draining,
        "model": supervisor.models.document(),
        "election": {
            "strategy": config.coordinator.election_strategy,
            "wanted": supervisor.wishes.leader,
        },
        "epoch": supervisor.last.number if supervisor.last is not None else 0,
        "leader": epoch.leader.name if epoch is not None else None,
        "nodes": [_node(supervisor, member.name) for member in supervisor.cluster.members],
        "standby": supervisor.standby.document(),
        "front_door": door.stats() if door is not None else {},
        "recoveries": [recovery.document() for recovery in supervisor.recoveries],
        "recoveries_total": supervisor.recoveries.count,
    }


def summary_of(supervisor: Supervisor) -> Document:
    """What the health routes add, which ask for no key: no host, no login, nothing of the past."""
    status = status_of(supervisor)
    return {key: status[key] for key in ("state", "reason", "draining", "epoch", "leader")}


def _state(supervisor: Supervisor) -> tuple[str, str]:
    """In one word, and why it does not serve, or not with the nodes that it should, in one sentence."""
    epoch = supervisor.epoch
    if epoch is None:
        last = supervisor.history.last
        return "waiting", supervisor.waiting_for or (last.reason if last is not None else "")
    phase = epoch.view(0).phase
    if phase is Phase.READY:
        return "serving", supervisor.waiting_for
    return phase.value, epoch.asked_to_stop or "the ranks are starting"


def _node(supervisor: Supervisor, name: str) -> Document:
    (member,) = supervisor.cluster.named([name])
    epoch = supervisor.epoch
    order = epoch.order if epoch is not None else ()
    seen = {rank.node: rank for rank in epoch.ranks} if epoch is not None else {}
    rank = seen.get(name)
    record = supervisor.records.get(name, Record())
    held = record.held_until - time.monotonic()
    return {
        "name": name,
        "host": member.host,
        "ssh": None if member.is_local else member.ssh,
        "rank": order.index(name) if name in order else None,
        "state": rank.state if rank is not None else ("starting" if name in order else "out"),
        "layers": list(rank.layers) if rank is not None and rank.layers is not None else None,
        "memory_bytes": rank.memory_bytes if rank is not None else None,
        "heartbeat_age_s": rank.heartbeat_age if rank is not None else None,
        "reachable": name not in supervisor.down,
        "why": supervisor.down.get(name),
        "refused": supervisor.refused.get(name),
        "failures": record.failures,
        "held_for_s": round(held, 1) if held > 0 else None,
    }


def rendered(status: Document) -> str:
    """The document for a terminal."""
    lines = [
        f"{status['cluster']}: {status['state']}"
        + (", draining" if status["draining"] else "")
        + (f" ({status['reason']})" if status["reason"] else "")
    ]
    model = status["model"]
    switching = "" if model["state"] == "serving" else f", {model['state']} {model['wanted']}"
    election = status["election"]
    wanted = f", {election['wanted']} is to lead" if election["wanted"] else ""
    lines.append(
        f"model {model['model']}{switching}   epoch {status['epoch']}   "
        f"up {timedelta(seconds=int(status['uptime_s']))}   {election['strategy']}{wanted}"
    )
    rows: list[tuple[str, ...]] = [
        ("", "node", "rank", "layers", "state", "memory", "heartbeat", "note")
    ]
    rows += [_row(node, status["leader"]) for node in status["nodes"]]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines.append("")
    lines += [
        "  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in rows
    ]
    door = status["front_door"]
    if door:
        lines.append("")
        lines.append("front door: " + ", ".join(f"{k} {v}" for k, v in door.items()))
    standby = status["standby"]
    on = f" on {', '.join(standby['nodes'])}" if standby["nodes"] else ""
    why = f" ({standby['reason']})" if standby["reason"] else ""
    lines += ["", f"standby for the next launch: {standby['state']}{on}{why}"]
    if status["recoveries"]:
        lines.append("")
        lines.append(f"recoveries: {status['recoveries_total']}, the latest first")
        lines += [_recovery(entry) for entry in status["recoveries"][::-1][:5]]
    return "\n".join(lines)


def _row(node: Document, leader: str | None) -> tuple[str, ...]:
    layers = node["layers"]
    memory, age = node["memory_bytes"], node["heartbeat_age_s"]
    notes = why_out(node)
    if node["failures"]:
        notes.append(f"{node['failures']} failures")
    return (
        "*" if node["name"] == leader else " ",
        node["name"],
        "-" if node["rank"] is None else str(node["rank"]),
        "-" if layers is None else f"{layers[0]}-{layers[1]}",
        node["state"],
        "-" if memory is None else f"{memory / 1e6:.0f} MB",
        "-" if age is None else f"{age:.1f} s",
        ", ".join(notes),
    )


def _recovery(entry: Document) -> str:
    how = ", by the standby" if entry["standby"] else ""
    return (
        f"  epoch {entry['epoch']}: {entry['cause']} ({entry['reason']}), {entry['nodes']} nodes, "
        f"{entry['leader']} leads{how}; {entry['total_s']:.1f} s = stop {entry['stop_s']:.1f}"
        f" + wait {entry['wait_s']:.1f} + launch {entry['launch_s']:.1f} + load {entry['load_s']:.1f}"
    )
