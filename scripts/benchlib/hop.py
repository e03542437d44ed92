"""One rank of the link benchmark: measures the hop to the next rank, and answers the one before.

Runs under mlx.launch.  Hops take their turn: who has answered until Goodbye is the next one to measure, so
that nothing else moves, and ranks that wait block in a socket read and use no CPU.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import mlx.core as mx
import msgspec

from pipeline.errors import FrameError
from pipeline.frames import Decode, Frame, Goodbye, Ready, Step
from pipeline.joining import join, listen
from pipeline.link import Connection, Links, Peer
from pipeline.ring import Ring, RingTunnel, evaluate, ring_addresses
from pipeline.security import LinkSecurity
from pipeline.split import TensorSpec

WAIT = 120.0  # seconds for one answer of a neighbour
WARM_UP = 3  # exchanges that are not counted
LOOPBACK = "127.0.0.1"
FLOAT_BYTES = 4  # of float32


class HopPlan(msgspec.Struct, frozen=True):
    """What to measure.  `frames`: sequences in a Decode frame; `tensors`: bytes; `count`: exchanges of each."""

    frames: tuple[int, ...]
    tensors: tuple[int, ...]
    count: int


class Exchange(msgspec.Struct, frozen=True):
    """There-and-back times in seconds of one kind of message, answered by the smallest frame.

    `kind`: `frame` or `tensor`, which is a frame that announces a tensor, and the tensor.  `size` in bytes.
    """

    hop: int  # from this rank to the next
    kind: str
    size: int
    seconds: tuple[float, ...]


def connect(ring: Ring, security: LinkSecurity | None = None) -> Links:
    """Frame links over the addresses of MLX's ring, on ports that are free.

    Raises TransportError if a neighbour can't be reached.
    """
    hosts = ring_addresses(ring.size) or [LOOPBACK] * ring.size
    listener = listen(hosts[ring.rank], 0)
    ports = ring.exchange({"port": listener.getsockname()[1]})
    peers = [
        Peer(rank, f"node{rank}", host, card["port"])
        for rank, (host, card) in enumerate(zip(hosts, ports, strict=True))
    ]
    return join(listener, ring.rank, peers, epoch=0, timeout=WAIT, security=security)


def measure_all(
    plan: HopPlan, tunnel: RingTunnel | None = None, security: LinkSecurity | None = None
) -> list[list[Exchange]] | None:
    """Take part in measuring every hop.  On rank 0: the exchanges of each hop; None elsewhere."""
    ring = Ring(tunnel)
    if ring.size < 2:
        raise FrameError("a ring of one rank has no hop to measure")
    links = connect(ring, security)
    try:
        if ring.rank == 0:
            own = _measure(ring, links.outbound, plan)
            _answer(ring, links.inbound)
        else:
            _answer(ring, links.inbound)
            own = _measure(ring, links.outbound, plan)
        _pass_round(ring, links)
        cards = ring.exchange({"exchanges": [msgspec.to_builtins(one) for one in own]})
    finally:
        links.close()
    if ring.rank != 0:
        return None
    return [[msgspec.convert(one, Exchange) for one in card["exchanges"]] for card in cards]


def _pass_round(ring: Ring, links: Links) -> None:
    """Hold every rank in a socket read until the last hop is done: waiting in `Ring.exchange` would spin."""
    if ring.rank == 0:
        links.outbound.send(Goodbye(), WAIT)
    _expect(links.inbound, Goodbye)
    if ring.rank != 0:
        links.outbound.send(Goodbye(), WAIT)


def _measure(ring: Ring, peer: Connection, plan: HopPlan) -> list[Exchange]:
    found = [_frame_exchange(ring, peer, sequences, plan.count) for sequences in plan.frames]
    found += [_tensor_exchange(ring, peer, size, plan.count) for size in plan.tensors]
    ring.flush()
    peer.send(Goodbye(), WAIT)
    return found


def _frame_exchange(ring: Ring, peer: Connection, sequences: int, count: int) -> Exchange:
    frame = _decode(sequences)
    before = peer.sent_bytes
    seconds = _repeat(count, lambda: peer.send(frame, WAIT), peer)
    size = (peer.sent_bytes - before) // (count + WARM_UP)
    return Exchange(ring.rank, "frame", size, seconds)


def _tensor_exchange(ring: Ring, peer: Connection, size: int, count: int) -> Exchange:
    array = mx.ones((size // FLOAT_BYTES,), mx.float32)
    evaluate(array)
    announcement = Step(0, tensors=(TensorSpec("", array.shape, "float32"),))

    def send() -> None:
        peer.send(announcement, WAIT)
        ring.send([array], (ring.rank + 1) % ring.size)

    return Exchange(ring.rank, "tensor", size, _repeat(count, send, peer))


def _repeat(count: int, send: Callable[[], None], peer: Connection) -> tuple[float, ...]:
    times = []
    for _ in range(WARM_UP + count):
        started = time.perf_counter()
        send()
        _expect(peer, Ready)
        times.append(time.perf_counter() - started)
    return tuple(times[WARM_UP:])


def _answer(ring: Ring, peer: Connection) -> None:
    """Answer each frame by Ready, one that announces tensors once they are there, until Goodbye."""
    while not isinstance(frame := peer.receive(WAIT), Goodbye):
        if not isinstance(frame, Step):
            raise FrameError(f"{frame!r} arrived where a Step was expected")
        expected = ring.expect(frame.tensors, (ring.rank - 1) % ring.size)
        ring.post(expected)
        evaluate(expected)
        peer.send(Ready(frame.id), WAIT)


def _decode(sequences: int) -> Step:
    """What a decode step of so many sequences sends, without its tensors."""
    ids = tuple(range(sequences))
    return Step(0, work=Decode(0, ids, tuple(30_000 + i for i in ids)))


def _expect(peer: Connection, kind: type[Any]) -> None:
    frame: Frame = peer.receive(WAIT)
    if not isinstance(frame, kind):
        raise FrameError(f"{frame!r} arrived where {kind.__name__} was expected")
