"""The tensor plane: mx.distributed between neighbouring ranks, and the meeting of all ranks at the start.

Everything here runs in the engine thread: MLX streams belong to the thread that made them.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import mlx.core as mx
import numpy as np

from config import ConfigError
from pipeline.errors import LinkClosed, PipelineError
from pipeline.split import TensorSpec


class RingTunnel(Protocol):
    """What carries MLX's connections in place of the network."""

    hostfile: Path  # by which MLX joins local ends

    def take_over(self) -> None:
        """MLX has joined these; return when the other ranks are at the far ends.  Raises PipelineError."""
        ...


class Ring:
    """This process's place among the ranks.

    Sends and receives run on a CPU stream of their own, so that they overlap with computing.
    """

    def __init__(self, tunnel: RingTunnel | None = None) -> None:
        """Join the ranks that mlx.launch started; alone if it started one or none.

        Raises LinkClosed if they don't all come (MLX waits about 30 s).
        """
        self._group = _init(tunnel)
        self.rank = self._group.rank() if self._group else 0
        self.size = self._group.size() if self._group else 1
        self.stream = mx.new_stream(mx.cpu)
        self._sending: deque[list[mx.array]] = deque()  # messages, oldest first

    def send(self, arrays: Sequence[mx.array], to: int) -> None:
        """Start sending a message to a neighbour, its arrays in order; does not wait for the receiver.

        Lazy arrays begin to be computed, which on a CPU may take most of the time that computing them takes.
        """
        message = []
        for array in arrays:
            message.append(mx.distributed.send(array, to, group=self._group, stream=self.stream))
            mx.async_eval(message[-1])  # type: ignore[no-untyped-call]
        self._sending.append(message)

    def make_room(self) -> None:
        """Wait until at most one message is still on its way, which bounds the memory held by sends.

        Raises LinkClosed if the neighbour is gone.
        """
        while len(self._sending) > 1:
            evaluate(self._sending.popleft())

    def flush(self) -> None:
        """Wait until what was sent has left.

        Raises LinkClosed if the neighbour is gone.
        """
        while self._sending:
            evaluate(self._sending.popleft())

    def expect(self, specs: Sequence[TensorSpec], source: int) -> list[mx.array]:
        """Lazy arrays that a neighbour will send; `post` them before evaluating what is built on them."""
        return [
            mx.distributed.recv(
                spec.shape, spec.mlx_dtype, source, group=self._group, stream=self.stream
            )
            for spec in specs
        ]

    def post(self, expected: Sequence[mx.array]) -> None:
        """Start receiving arrays of `expect`, in the order in which the neighbour sends them.

        Tensors have no tags: left to the evaluation of a graph, receives would be posted in the order of
        their use, and one that nothing uses would not be posted at all.  Only post when the sender has
        announced that it sends: a posted receive spins a CPU core.
        """
        for array in expected:
            mx.async_eval(array)  # type: ignore[no-untyped-call]

    def exchange(self, card: dict[str, Any]) -> list[dict[str, Any]]:
        """Give every rank the JSON-able `card` of every rank, in rank order.  All ranks must call it."""
        if self._group is None:
            return [card]
        data = json.dumps(card).encode()
        lengths = np.array(self._gather(mx.array([len(data)], mx.int32)))
        padded = np.frombuffer(data.ljust(int(lengths.max()), b"\0"), np.uint8)
        rows = np.array(self._gather(mx.array(padded))).reshape(self.size, -1)
        return [
            json.loads(row[:length].tobytes()) for row, length in zip(rows, lengths, strict=True)
        ]

    def _gather(self, array: mx.array) -> mx.array:
        gathered = mx.distributed.all_gather(array, group=self._group, stream=self.stream)
        evaluate(gathered)
        return gathered


def evaluate(*trees: Any) -> None:
    """mx.eval, where a neighbour that went away is an error of this project.

    Raises LinkClosed; other errors of MLX pass through.
    """
    try:
        mx.eval(*trees)
    except RuntimeError as error:
        if _is_lost_peer(error):
            raise LinkClosed(str(error)) from error
        raise


def check_early_receive(configured: bool) -> None:
    """Raises ConfigError where it is known not to work."""
    if configured and mx.cuda.is_available():
        reason = "on CUDA, ranks with early receives were seen to fail"
        raise ConfigError(f"network.early_receive = true: {reason}.")


def _is_lost_peer(error: RuntimeError) -> bool:
    text = str(error)
    return any(mark in text for mark in ("[ring]", "[mpi]", "[jaccl]", "connection to a peer"))


def launched_size() -> int | None:
    """How many ranks mlx.launch says it started; None where it does not say."""
    path = os.environ.get("MLX_HOSTFILE")
    if path is None:
        count = os.environ.get("OMPI_COMM_WORLD_SIZE") or os.environ.get("MLX_WORLD_SIZE")
        return int(count) if count else None
    with open(path, encoding="utf-8") as file:
        text = file.read().strip()
    return len(json.loads(text)) if text else 1


def _init(tunnel: RingTunnel | None) -> mx.distributed.Group | None:
    """The group of all ranks; None for a single one, whose empty hostfile mx.distributed.init refuses."""
    if launched_size() in (None, 1) and not os.environ.get("MLX_IBV_DEVICES"):
        return None
    try:
        with _joining_by(tunnel), _politely():
            group = mx.distributed.init(strict=True)
    except RuntimeError as error:
        raise LinkClosed(f"the ranks did not find each other: {error}") from error
    if tunnel is not None:
        tunnel.take_over()
    return group if group.size() > 1 else None


@contextlib.contextmanager
def _politely() -> Iterator[None]:
    """Lets whoever has something to do go first, where the ranks share processors.

    One that has been called calls the next, and the last of them listens only after its own call: if those that
    it wakes run at once, in its place, they find nobody and try again a second later.
    """
    if sys.platform != "linux" or os.sched_getscheduler(0) != os.SCHED_OTHER:
        yield  # on Macs, each rank has its own
        return
    with contextlib.suppress(PermissionError):
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    try:
        yield
    finally:
        with contextlib.suppress(PermissionError):
            os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))


@contextlib.contextmanager
def _joining_by(tunnel: RingTunnel | None) -> Iterator[None]:
    """MLX reads the addresses of the ranks from a file that the environment names."""
    if tunnel is None:
        yield
        return
    launched = os.environ["MLX_HOSTFILE"]
    os.environ["MLX_HOSTFILE"] = str(tunnel.hostfile)
    try:
        yield
    finally:
        os.environ["MLX_HOSTFILE"] = launched


def ring_addresses(size: int) -> list[str] | None:
    """The address of each rank as its neighbours reach it, from the ring's hostfile; None on other backends."""
    path = os.environ.get("MLX_HOSTFILE")
    if path is None:
        return None
    with open(path, encoding="utf-8") as file:
        text = file.read().strip()
    if not text:
        return None
    addresses = [entry[0].rsplit(":", 1)[0] for entry in json.loads(text)]
    if len(addresses) != size:
        raise PipelineError(f"MLX_HOSTFILE names {len(addresses)} ranks, {size} are running")
    return addresses
