"""Log lines: their form, what is on each of them, levels that change, and shipping."""

from __future__ import annotations

import asyncio
import json
import logging
import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import structlog

from server import logs
from server.observe.log_shipper import BATCH_BYTES, LogShipper
from server.rpc.errors import CoordinatorLost, InvalidMessage, Refused
from server.rpc.log_book import LogBook
from server.rpc.records import LogBatch
from tests.server.rpc.samples import registration
from tests.server.rpc.test_coordinator import cluster

DEADLINE = 60.0  # seconds


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Logging without a past, and as it was before afterwards."""
    root = logging.getLogger()
    before, level, configuration = root.handlers[:], root.level, structlog.get_config()
    monkeypatch.setattr(logs, "_identity", {})
    monkeypatch.setattr(logs, "_shipping", [])
    yield
    root.handlers[:] = before
    root.setLevel(level)
    structlog.configure(**configuration)


pytestmark = pytest.mark.usefixtures("fresh")
Capture = pytest.CaptureFixture[str]


def test_every_json_line_says_when_who_and_for_whom(capsys: Capture) -> None:
    logs.configure("info", "json")
    logs.bind_rank("mini1", 0, 7)
    with structlog.contextvars.bound_contextvars(request_id="req_1"):
        structlog.get_logger().info("settings changed", revision=2)
        logging.getLogger("some.library").warning("of a library")
    own, foreign = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    common = {"node": "mini1", "rank": 0, "epoch": 7, "request_id": "req_1"}
    assert isinstance(own.pop("time"), float)
    assert own == {**common, "level": "info", "event": "settings changed", "revision": 2}
    assert foreign.items() >= {**common, "level": "warning", "event": "of a library"}.items()


def test_levels_change_for_loggers_that_are_in_use(capsys: Capture) -> None:
    logs.configure("info", "text")
    log = structlog.get_logger()
    log.debug("first")
    logs.set_level("debug")
    log.debug("second")
    logs.set_level("error")
    log.warning("third")
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert "second" in lines[0]


def test_tracebacks_show_no_variables(capsys: Capture) -> None:
    logs.configure("info", "json")
    prompt = "a secret" + " prompt"

    def fail(text: str) -> None:
        raise ZeroDivisionError

    try:
        fail(prompt)
    except ZeroDivisionError:
        structlog.get_logger().exception("request failed")
    [shipped] = logs.shipping().take(10)
    for line in (capsys.readouterr().err, shipped):
        assert "ZeroDivisionError" in line
        assert prompt not in line


@pytest.mark.parametrize(
    ("variables", "form"),
    [({}, "json"), ({"MLX_RANK": "1"}, "text")],
    ids=["service", "mlx.launch"],
)
def test_the_form_that_fits(
    variables: dict[str, str], form: str, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLX_RANK", raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert logs.fitting_form() == form
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert logs.fitting_form() == "text"


def test_lines_that_nobody_takes_are_bounded_and_counted(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "KEPT_LINES", 3)
    logs.configure("info", "text")
    log = structlog.get_logger()
    for number in range(5):
        log.info("line", number=number)
    handler = logs.shipping()
    assert handler.dropped == 2
    assert [json.loads(line)["number"] for line in handler.take(2)] == [2, 3]
    assert [json.loads(line)["number"] for line in handler.take(2)] == [4]
    log.info("long", text="x" * 100_000)
    [cut] = handler.take(1)
    assert len(cut) <= logs.MAX_LINE
    assert json.loads(cut).items() >= {"event": "long", "cut": True}.items()


class Sink:
    def __init__(self) -> None:
        self.batches: list[LogBatch] = []
        self.lost = False

    async def __call__(self, batch: LogBatch) -> None:
        if self.lost:
            raise CoordinatorLost("gone")
        self.batches.append(batch)

    async def until(self, lines: int) -> None:
        async def poll() -> None:
            while sum(len(batch.lines) for batch in self.batches) < lines:
                await asyncio.sleep(0.01)

        await asyncio.wait_for(poll(), DEADLINE)


@pytest.mark.anyio
async def test_lines_are_shipped_as_they_come_and_losses_are_told(capsys: Capture) -> None:
    logs.configure("info", "text")
    sink, log = Sink(), structlog.get_logger()
    log.info("before it ran")
    shipper = asyncio.create_task(LogShipper(registration(1), logs.shipping(), sink).run())
    try:
        await sink.until(1)
        sink.lost = True
        await asyncio.to_thread(log.info, "lost")
        while logs.shipping()._lines:
            await asyncio.sleep(0.01)
        sink.lost = False
        await asyncio.to_thread(log.info, "again")
        await sink.until(2)
    finally:
        shipper.cancel()
    assert [json.loads(batch.lines[0])["event"] for batch in sink.batches] == [
        "before it ran",
        "again",
    ]
    assert [batch.dropped for batch in sink.batches] == [0, 1]


@pytest.mark.anyio
async def test_a_burst_is_cut_into_messages_that_grpc_takes(capsys: Capture) -> None:
    logs.configure("info", "text")
    async with cluster() as (coordinator, client):
        log = structlog.get_logger()
        for number in range(150):
            log.info("long", number=number, text="x" * (BATCH_BYTES // 50))
        shipper = LogShipper(registration(1), logs.shipping(), client.ship_logs)
        task = asyncio.create_task(shipper.run())
        try:
            while len(coordinator.logs.latest(1000)) < 150:
                await asyncio.sleep(0.01)
        finally:
            task.cancel()
        assert coordinator.logs.dropped == {(1, "mini2"): 0}


def test_the_book_is_bounded_and_in_order_of_time() -> None:
    book = LogBook(7, most=3)

    def batch(*times: float, **changes: Any) -> LogBatch:
        lines = tuple(json.dumps({"time": at, "event": "x"}) for at in times)
        return replace(LogBatch(7, 0, "mini1", lines), **changes)

    book.take(batch(1.0, 4.0))
    book.take(batch(3.0, 2.0, rank=1, node="mini2", dropped=5))
    assert [line["time"] for line in book.latest(10)] == [2.0, 3.0, 4.0]
    assert [line["time"] for line in book.latest(2)] == [3.0, 4.0]
    assert book.dropped == {(0, "mini1"): 0, (1, "mini2"): 5}
    with pytest.raises(Refused):
        book.take(batch(1.0, epoch=6))
    for text in ("no", "[]", "{}", '{"time": "x"}', "[" * 100_000):
        with pytest.raises(InvalidMessage, match="lines"):
            book.take(batch(lines=(text,)))
