"""What `top` shows of what it saw, and that it follows a cluster that goes away."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
import pytest
from rich.console import Console

from launcher.commands import top
from launcher.commands.top_view import Seen, screen
from launcher.commands.watcher import PATH, Watcher


def node(rank: int, name: str) -> dict[str, Any]:
    return {
        "rank": rank,
        "node": name,
        "leader": rank == 0,
        "layers": {"first": 10 * rank, "last": 10 * rank + 9, "count": 10},
        "state": "ready",
        "heartbeat_age_s": 0.25,
        "load": 0.5,
        "gpu_memory": {"active_bytes": 3_000_000_000},
        "resources": {
            "memory_used": 8e9,
            "memory_total": 16e9,
            "cpu_percent": 12.0,
            "temperature_c": 51,
        },
    }


PICTURE: dict[str, Any] = {
    "name": "home",
    "model": "tiny",
    "epoch": 77,
    "size": 2,
    "status": "ok",
    "reason": "",
    "uptime_s": 5,
    "leader": {"rank": 0, "node": "mini1"},
    "nodes": [node(0, "mini1"), node(1, "mini2")],
    "tokens_per_s": {"generated": 41.5, "prompt": None},
    "queue": {"running": 1, "waiting": 2},
    "time_to_first_token_s": {"p50": 0.2, "p95": 1.5},
    "requests": [
        {"id": "[red]req", "principal": "Ann", "state": "decode", "prompt_tokens": 7, "output_tokens": 3,
         "max_tokens": 9, "age_s": 1.5}
    ],
    "alerts": [{"message": "disk_percent of mini2 (rank 1) is 97"}],
}  # fmt: skip


def known(name: str, rank: int | None, **more: Any) -> dict[str, Any]:
    state = "ready" if rank is not None else "out"
    return {"name": name, "rank": rank, "state": state, "layers": None, "heartbeat_age_s": None,
            "reachable": True, "why": None, "held_for_s": None, "failures": 0, **more}  # fmt: skip


STATUS: dict[str, Any] = {
    "cluster": "home",
    "state": "serving",
    "reason": "",
    "draining": False,
    "epoch": 4,
    "uptime_s": 7300,
    "leader": "mini1",
    "nodes": [
        known("mini1", 0),
        known("mini2", 1),
        known("master", None, held_for_s=12.0, failures=2),
    ],
    "recoveries": [
        {"epoch": 4, "reason": "[ring] is gone", "leader": "mini1", "nodes": 2, "total_s": 3.5}
    ],
    "recoveries_total": 1,
}


def text(seen: Seen, width: int = 160) -> str:
    console = Console(width=width, markup=False, highlight=False, color_system=None)
    with console.capture() as captured:
        console.print(screen(seen))
    return captured.get()


def test_everything_is_shown_without_colour_and_no_text_is_taken_for_markup() -> None:
    shown = text(Seen(PICTURE, STATUS, live=True))
    for words in (
        "home: ok, tiny on 2 nodes, mini1 leads, epoch 4, up 2 h 1 min",
        "41.5 tokens/s",
        "running 1, waiting 2",
        "* mini1",
        "3.0 GB",
        "8.0/16.0 GB",
        "51 °C",
        "kept out for 12 s, failed 2 times",
        "[red]req",
        "alert: disk_percent",
        "epoch 4 after 3.5 s: [ring] is gone; mini1 leads 2 nodes",
    ):
        assert words in shown, shown
    assert "\x1b" not in shown


def test_a_failover_is_told_and_old_figures_are_not() -> None:
    waiting = {**STATUS, "state": "waiting", "reason": "mini2 is dead"}
    shown = text(Seen(PICTURE, waiting, live=False))
    assert "home: waiting, mini2 is dead" in shown
    assert "51 °C" not in shown


@pytest.mark.parametrize("width", [200, 100, 80, 60, 40])
def test_a_node_takes_one_line_however_narrow_the_window(width: int) -> None:
    name = "mac-studio-of-the-living-room"
    picture = {**PICTURE, "nodes": [node(rank, f"{name}-{rank}") for rank in range(8)]}
    lines = text(Seen(picture, None, live=True), width).splitlines()
    assert max(map(len, lines)) <= width
    start = next(i for i, line in enumerate(lines) if line.startswith("node"))
    rows = lines[start + 1 : start + 9]
    assert all("mac" in row and "rea" in row for row in rows), rows
    assert ("51 °C" in rows[0]) == (width == 200)


def test_of_a_launcher_that_is_gone_nothing_is_said_to_be_so_now() -> None:
    shown = text(Seen(PICTURE, STATUS, fault="connection refused", reachable=False))
    assert "home: connection refused; trying again" in shown
    assert "ready" not in shown


def test_without_a_launcher_rank_0_tells_all() -> None:
    assert "epoch 77" in text(Seen(PICTURE, None, live=True))


class Gateway(BaseHTTPRequestHandler):
    """Answers as a cluster; its stream ends after each picture, as when it is stopped."""

    launcher = True

    def do_GET(self) -> None:
        if self.path != PATH:
            self.send_error(404)
            return
        told = f"event: launcher\ndata: {json.dumps(STATUS)}\n\n" if self.launcher else ""
        body = f": ping\n\n{told}data: {json.dumps(PICTURE)}\n\n".encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None: ...


@pytest.fixture(params=[True, False], ids=["launcher", "bare"])
def url(request: pytest.FixtureRequest) -> Iterator[str]:
    handler = type("Handler", (Gateway,), {"launcher": request.param})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_once(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert top.run(["--once", "--url", url]) == 0
    assert "mini1 leads" in capsys.readouterr().out


def test_into_a_pipe_it_is_printed_once(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert top.run(["--url", url]) == 0
    assert "mini1 leads" in capsys.readouterr().out


def test_it_asks_again_after_a_stream_has_ended(url: str) -> None:
    again = threading.Event()
    seen: list[bool] = []

    def changed() -> None:
        seen.append(watcher.seen.live)
        if seen.count(True) > 1:
            again.set()

    with httpx.Client(base_url=url, trust_env=False) as client:
        watcher = Watcher(client, changed)
        with watcher.running():
            assert again.wait(60)
    assert False in seen[seen.index(True) :]


def test_while_rank_0_is_away_the_launcher_is_believed() -> None:
    seen: list[Seen] = []

    def answer(request: httpx.Request) -> httpx.Response:
        events = [
            ("launcher", STATUS),
            ("", PICTURE),
            ("gap", {"reason": "mini1 is dead"}),
            ("launcher", {**STATUS, "state": "waiting", "reason": "mini1 is dead"}),
        ]
        named = {"": ""} | {kind: f"event: {kind}\n" for kind in ("launcher", "gap")}
        text = "".join(f"{named[kind]}data: {json.dumps(data)}\n\n" for kind, data in events)
        return httpx.Response(200, text=text)

    done = threading.Event()

    def changed() -> None:
        seen.append(watcher.seen)
        if not watcher.seen.reachable:
            done.set()

    with httpx.Client(transport=httpx.MockTransport(answer), base_url="http://x") as client:
        watcher = Watcher(client, changed)
        with watcher.running():
            assert done.wait(60)
    headlines = [text(each).splitlines()[0] for each in seen[:5]]
    assert headlines == [
        "home: serving",
        "home: ok, tiny on 2 nodes, mini1 leads, epoch 4, up 2 h 1 min",
        "home: mini1 is dead",
        "home: waiting, mini1 is dead",
        "home: the stream has ended; trying again",
    ]
    assert [("41.5" in text(each)) for each in seen[:5]] == [False, True, False, False, False]


def test_nobody_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert top.run(["--once", "--url", "http://127.0.0.1:1"]) == 1
    assert "error: http://127.0.0.1:1: " in capsys.readouterr().err
