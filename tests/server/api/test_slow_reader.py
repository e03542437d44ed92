"""A client that reads more slowly than tokens are made holds a bounded buffer, and is cut off in the end."""

from __future__ import annotations

import asyncio
import json
import socket

import pytest

from pipeline.request import GenerationRequest, SamplingParams
from server.api import generation
from server.api.generation import Job, Piece, SequenceSpec
from tests.server.api.fakes import FakeEngine, Script, ids, make_service
from tests.server.api.test_live import DEADLINE_S, serving, wait_until

MANY = 200_000


def test_a_reader_that_stops_is_cancelled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generation, "PATIENCE_WITH_READER_S", 0.2)
    engine = FakeEngine(Script(ids("a") * MANY))
    service = make_service(engine, max_model_len=2 * MANY)
    body = {"model": "tiny", "prompt": "hi", "max_tokens": MANY, "stream": True}
    sent = json.dumps(body).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {len(sent)}\r\n\r\n"
    with serving(service) as address, socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.settimeout(DEADLINE_S)
        connection.connect(address)
        connection.sendall(head.encode() + sent)
        wait_until(lambda: len(engine.cancelled) == 1)
        wait_until(lambda: service.running == 0)
        received = bytearray()
        while chunk := connection.recv(1 << 16):
            received += chunk
    assert b"200 OK" in received
    assert b"[DONE]" not in received
    assert b'"finish_reason":"' not in received


def job(engine: FakeEngine) -> Job:
    service = make_service(engine)
    assert service.model is not None
    request = GenerationRequest(id="r", prompt=(7,), params=SamplingParams(), max_tokens=MANY)
    return Job(service, service.model, engine, [SequenceSpec(request)])


def test_a_reader_that_catches_up_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generation, "QUEUED_PIECES", 4)
    monkeypatch.setattr(generation, "PATIENCE_WITH_READER_S", 3600.0)
    engine = FakeEngine(Script(ids("a") * 100))

    async def read_late() -> list[Piece]:
        async with job(engine) as running:
            while not running._queue.full():
                await asyncio.sleep(0)
            for _ in range(50):
                await asyncio.sleep(0)
            return [piece async for piece in running.pieces()]

    pieces = asyncio.run(asyncio.wait_for(read_late(), DEADLINE_S))
    assert "".join(piece.text for piece in pieces) == "a" * 100


def test_a_steady_but_slow_reader_is_cancelled_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each piece finds room in time; being behind without a break is what counts."""
    monkeypatch.setattr(generation, "QUEUED_PIECES", 4)
    monkeypatch.setattr(generation, "PATIENCE_WITH_READER_S", 0.3)
    engine = FakeEngine(Script(ids("a") * MANY))

    async def trickle() -> int:
        async with job(engine) as running:
            taken = 0
            async for _ in running.pieces():
                taken += 1
                await asyncio.sleep(0.02)
                if running.overrun.is_set():
                    return taken
        return 0

    assert asyncio.run(asyncio.wait_for(trickle(), DEADLINE_S)) > 0
    assert engine.cancelled == ["r"]
