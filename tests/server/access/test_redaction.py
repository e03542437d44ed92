"""What people say, their keys and their tokens are in no log, whatever goes wrong."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import structlog

from pipeline.errors import ConstraintRefused, EngineFault
from server import logs
from server.access.middleware import Guard
from server.access.policy import AccessPolicy
from server.access.store import KeyStore
from server.node.serve import Listener, start_servers
from tests.server.access.apps import rank_0_app
from tests.server.access.helpers import add_key
from tests.server.api.fakes import FakeEngine, Script, ids

MARKER = "zebrafish"  # in prompts, outputs, fields and keys


@pytest.fixture
def configured(capfd: pytest.CaptureFixture[str]) -> Iterator[Any]:
    """Logs go to stderr as in a rank; gives everything that this process has written."""
    root = logging.getLogger()
    handlers, level, structlog_before = root.handlers[:], root.level, structlog.get_config()

    def configure(show_content: bool = False) -> Any:
        logs.configure(show_content=show_content)
        return capfd

    yield configure
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.configure(**structlog_before)


class Break(FakeEngine):
    """Quotes the request in what it raises."""

    async def _generate(self, request: Any) -> Any:
        raise RuntimeError(f"can't do {MARKER} for {request.prompt}")
        yield


ENGINES: dict[str, FakeEngine] = {
    "answers": FakeEngine(Script(ids(MARKER))),
    "fails": FakeEngine(Script(ids(MARKER), error=EngineFault("rank 1 is gone"))),
    "fails at once": FakeEngine(Script(error=EngineFault("rank 1 is gone"))),
    "can't go on": FakeEngine(
        Script(
            ids(MARKER), error=ConstraintRefused(f"token {MARKER!r} doesn't satisfy the grammar")
        )
    ),
    "breaks": Break(),
    "breaks later": FakeEngine(Script(ids(MARKER), error=RuntimeError(MARKER))),
}


def requests() -> list[tuple[str, dict[str, Any]]]:
    chat = {"model": "tiny", "messages": [{"role": "user", "content": MARKER}]}
    part = {"type": "image_url", "image_url": {"url": f"http://{MARKER}.test"}}
    return [
        ("/v1/chat/completions", chat),
        ("/v1/chat/completions", {**chat, "stream": True}),
        ("/v1/completions", {"model": "tiny", "prompt": MARKER}),
        ("/v1/completions", {"model": "tiny", "prompt": MARKER, "stream": True}),
        ("/v1/completions", {"model": "tiny", "prompt": [MARKER] * 3}),
        ("/v1/chat/completions", {**chat, "messages": [{"role": "user", "content": [part]}]}),
        ("/v1/chat/completions", {**chat, "messages": [{"role": MARKER, "content": "x"}]}),
        ("/v1/chat/completions", {**chat, "temperature": MARKER}),
        ("/v1/chat/completions", {**chat, "model": MARKER}),
        ("/v1/chat/completions", {**chat, "stop": [MARKER] * 99}),
        ("/v1/completions", {"model": "tiny", "prompt": MARKER * 500}),
        (f"/v1/{MARKER}", {}),
        (f"/v1/completions?{MARKER}", {"model": "tiny", "prompt": MARKER}),
    ]


async def serve_and_ask(app: Any, key: str) -> list[int]:
    servers = await start_servers([Listener("gateway", app, "127.0.0.1", 0)])
    host, port = servers.addresses["gateway"]
    statuses = []
    try:
        async with httpx.AsyncClient(base_url=f"http://{host}:{port}", timeout=60) as client:
            for path, body in requests():
                for given in (key, f"mlxc_{MARKER}", f"{MARKER}.{MARKER}.{MARKER}"):
                    headers = {"authorization": f"Bearer {given}"}
                    with contextlib.suppress(httpx.RemoteProtocolError):  # cut in mid-stream
                        response = await client.post(path, json=body, headers=headers)
                        statuses.append(response.status_code)
            broken = json.dumps({"prompt": MARKER})[:-3]
            await client.post("/v1/completions", content=broken, headers=headers)
    finally:
        await servers.stop(0)
    gc.collect()  # asyncio tells of errors that nobody has asked for when the task goes
    return statuses


@pytest.mark.parametrize("name", ENGINES)
def test_nothing_that_was_said_is_in_a_log(configured: Any, tmp_path: Path, name: str) -> None:
    capture, path = configured(), tmp_path / "keys.json"
    key = add_key(path)
    app = rank_0_app(Guard(AccessPolicy(KeyStore(path))), ENGINES[name])
    statuses = asyncio.run(asyncio.wait_for(serve_and_ask(app, key), 120))
    assert 401 in statuses
    assert (200 in statuses) == (
        name in ("answers", "fails", "can't go on")
    )  # a stream that fails has begun
    written = "".join(capture.readouterr())
    assert "not let in" in written  # it is the log
    if "breaks" in name:
        assert "Traceback" in written
        assert "RuntimeError: (message withheld" in written
    assert MARKER not in written
    assert key not in written
    assert key.split("_", 2)[2] not in written


def test_the_switch_for_debugging_shows_what_was_said(configured: Any, tmp_path: Path) -> None:
    capture, path = configured(show_content=True), tmp_path / "keys.json"
    key = add_key(path)
    app = rank_0_app(Guard(AccessPolicy(KeyStore(path))), ENGINES["answers"])
    app.state.service.log_prompts = True
    asyncio.run(asyncio.wait_for(serve_and_ask(app, key), 120))
    written = "".join(capture.readouterr())
    assert written.count(MARKER) >= 2  # prompt and output
    assert key not in written


def test_messages_of_own_errors_and_of_the_system_are_shown(configured: Any) -> None:
    capture = configured()
    log = structlog.get_logger()
    try:
        try:
            raise ValueError(MARKER)
        except ValueError as cause:
            raise EngineFault("rank 1 is gone") from cause
    except EngineFault:
        log.exception("failed")
    try:
        Path("/nonexistent/file").read_text()
    except OSError as error:
        log.error("failed", exc_info=error)
    logging.getLogger("somebody").error("failed", exc_info=KeyError(MARKER))
    text = f"Task exception was never retrieved\nfuture: <Task exception=KeyError({MARKER!r})>"
    logging.getLogger("asyncio").error(text, exc_info=KeyError(MARKER))
    written = "".join(capture.readouterr())
    assert "never retrieved" in written
    assert "EngineFault: rank 1 is gone" in written
    assert "/nonexistent/file" in written
    assert "ValueError: (message withheld" in written
    assert "KeyError: (message withheld" in written
    assert MARKER not in written


def test_a_group_of_errors(configured: Any) -> None:
    group_type = getattr(__builtins__, "ExceptionGroup", None)
    if group_type is None and isinstance(__builtins__, dict):
        group_type = __builtins__.get("ExceptionGroup")
    if group_type is None:
        pytest.skip("Python 3.10 has no groups")
    capture = configured()
    structlog.get_logger().error(
        "failed", exc_info=group_type(MARKER, [ValueError(MARKER), EngineFault("shown")])
    )
    written = "".join(capture.readouterr())
    assert MARKER not in written
    assert "EngineFault: shown" in written
