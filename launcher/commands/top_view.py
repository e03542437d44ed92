"""What `top` shows: a pure function of what was seen."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

from launcher.node_notes import why_out

Document = dict[str, Any]

NONE = "-"
COLUMNS = (
    "node", ">rank", ">layers", "state", ">busy", ">GPU", ">memory", ">CPU", ">temp", ">beat", "note"
)  # fmt: skip
FIRST_TO_GO = ("temp", "CPU", "GPU", "beat", "memory", "rank", "layers")
ENDLESS = 10_000  # columns
SHOWN_REQUESTS = 10
SHOWN_RECOVERIES = 3


@dataclass(frozen=True)
class Seen:
    """picture: the latest of rank 0; status: the launcher's, None without one.

    live: pictures come in; fault: why they do not; reachable: somebody answers at all.
    """

    picture: Document | None = None
    status: Document | None = None
    live: bool = False
    fault: str = ""
    reachable: bool = True


def screen(seen: Seen) -> RenderableType:
    """Everything, one below the other."""
    if seen.picture is None and seen.status is None:
        return Text(seen.fault or "connecting")
    parts: list[RenderableType] = [_headline(seen)]
    shown = seen.picture if seen.live else None  # figures of before tell nothing of now
    if shown is not None:
        parts.append(_load(shown))
    parts += ["", _Nodes(seen)]
    if shown is not None:
        parts += ["", _requests(shown["requests"])]
        parts += [Text(f"alert: {alert['message']}", "yellow") for alert in shown["alerts"]]
    if seen.status is not None and seen.status["recoveries"]:
        parts += ["", *_recoveries(seen.status)]
    return Group(*parts)


def _headline(seen: Seen) -> Text:
    picture, status = seen.picture, seen.status
    name = status["cluster"] if status else picture and picture["name"]
    if not seen.reachable:
        return Text(f"{name}: {seen.fault}; trying again", "bold red")
    if status is not None and status["state"] != "serving":
        return Text(f"{name}: {status['state']}, {status['reason']}", "bold red")
    if seen.fault:
        return Text(f"{name}: {seen.fault}", "bold red")
    if picture is None:
        return Text(f"{name}: {status['state'] if status else 'connecting'}", "bold")
    state = "draining" if status and status["draining"] else picture["status"]
    reason = f" ({picture['reason']})" if picture["reason"] else ""
    uptime = status["uptime_s"] if status else picture["uptime_s"]
    epoch = status["epoch"] if status else picture["epoch"]
    line = f"{name}: {state}{reason}, {picture['model']} on {picture['size']} nodes, "
    line += f"{picture['leader']['node']} leads, epoch {epoch}, up {_span(uptime)}"
    return Text(line, "bold" if state == "ok" else "bold yellow")


def _load(picture: Document) -> Text:
    speed, queue, first = (
        picture["tokens_per_s"],
        picture["queue"],
        picture["time_to_first_token_s"],
    )
    return Text(
        f"{_rate(speed['generated'])} tokens/s, prompts {_rate(speed['prompt'])}   "
        f"running {queue['running']}, waiting {queue['waiting']}   "
        f"first token p50 {_span(first['p50'])}, p95 {_span(first['p95'])}"
    )


def _table(*columns: str) -> Table:
    """Of columns that are cut, never wrapped, where the window is too narrow."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in columns:
        table.add_column(
            column.lstrip(">"), justify="right" if column[0] == ">" else "left", no_wrap=True
        )
    return table


@dataclass(frozen=True)
class _Nodes:
    """The nodes, with as many columns as fit."""

    seen: Seen

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        endless = options.update(max_width=ENDLESS)
        left_out: set[str] = set()
        table = self._table(left_out)
        for title in FIRST_TO_GO:
            if console.measure(table, options=endless).maximum <= options.max_width:
                break
            left_out.add(title)
            table = self._table(left_out)
        table.columns[0].max_width = options.max_width // 2  # of the rest something is to be seen
        yield table

    def _table(self, left_out: Collection[str]) -> Table:
        shown = [title for title in COLUMNS if title.lstrip(">") not in left_out]
        table = _table(*shown)
        for cells in self._rows():
            table.add_row(*(cells[title.lstrip(">")] for title in shown))
        return table

    def _rows(self) -> Iterator[dict[str, str]]:
        seen = self.seen
        nodes = {node["node"]: node for node in (seen.picture or {}).get("nodes", [])}
        known = {node["name"]: node for node in (seen.status or {}).get("nodes", [])}
        current = seen.live and (seen.status is None or seen.status["state"] == "serving")
        for name in {**known, **nodes}:
            node = nodes.get(name) if current else None
            yield _cells(name, node, known.get(name), seen)


def _cells(name: str, node: Document | None, known: Document | None, seen: Seen) -> dict[str, str]:
    leader = seen.status["leader"] if seen.status else node and node["leader"] and name
    node = node or {}
    known = known or {}
    machine, gpu = node.get("resources") or {}, node.get("gpu_memory") or {}
    rank = known["rank"] if known else node.get("rank")
    first, last = _layers(node, known)
    load, temperature = node.get("load"), machine.get("temperature_c")
    told = known if seen.reachable else {}  # what was so before may be so no more
    return {
        "node": f"* {name}" if name == leader else f"  {name}",
        "rank": NONE if rank is None else str(rank),
        "layers": NONE if first is None else f"{first}-{last}",
        "state": str(node.get("state") or told.get("state") or NONE),
        "busy": NONE if load is None else f"{load:.0%}",
        "GPU": _bytes(gpu.get("active_bytes")),
        "memory": _part(machine.get("memory_used"), machine.get("memory_total")),
        "CPU": f"{machine['cpu_percent']:.0f} %" if machine else NONE,
        "temp": NONE if temperature is None else f"{temperature:.0f} °C",
        "beat": _span(node.get("heartbeat_age_s", told.get("heartbeat_age_s"))),
        "note": _note(known),
    }


def _layers(node: Document, known: Document) -> tuple[int | None, int | None]:
    if node.get("layers"):
        return node["layers"]["first"], node["layers"]["last"]
    first, last = known.get("layers") or (None, None)
    return first, last


def _note(known: Document) -> str:
    notes = why_out(known)
    if known.get("failures"):
        notes.append(f"failed {known['failures']} times")
    return ", ".join(notes)


def _requests(requests: list[Document]) -> RenderableType:
    if not requests:
        return Text("no request in flight", "dim")
    table = _table("request", "who", "state", ">prompt", ">output", ">age")
    for request in requests[:SHOWN_REQUESTS]:
        table.add_row(
            Text(request["id"]),  # whatever a client called it
            Text(request["principal"]),
            request["state"],
            str(request["prompt_tokens"]),
            f"{request['output_tokens']}/{request['max_tokens']}",
            _span(request["age_s"]),
        )
    if len(requests) > SHOWN_REQUESTS:
        table.add_row(f"and {len(requests) - SHOWN_REQUESTS} more")
    return table


def _recoveries(status: Document) -> list[RenderableType]:
    lines: list[RenderableType] = [Text(f"failovers: {status['recoveries_total']}", "dim")]
    lines += [
        Text(
            f"  epoch {entry['epoch']} after {_span(entry['total_s'])}: {entry['reason']};"
            f" {entry['leader']} leads {entry['nodes']} nodes"
        )
        for entry in status["recoveries"][::-1][:SHOWN_RECOVERIES]
    ]
    return lines


def _span(seconds: float | None) -> str:
    if seconds is None:
        return NONE
    if seconds < 1:
        return f"{1000 * seconds:.0f} ms"
    if seconds < 120:
        return f"{seconds:.1f} s"
    minutes = int(seconds) // 60
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"


def _rate(value: float | None) -> str:
    return NONE if value is None else f"{value:.1f}"


def _part(used: float | None, total: float | None) -> str:
    if used is None or total is None:
        return NONE
    some, unit = _bytes(used).split()
    return (
        f"{some}/{_bytes(total)}"
        if _bytes(total).endswith(unit)
        else f"{_bytes(used)}/{_bytes(total)}"
    )


def _bytes(count: float | None) -> str:
    if count is None:
        return NONE
    for unit in ("B", "KB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"
