"""The life of one rank, in the engine thread: meet, plan, load, link, work.

Everything that touches MLX happens in this one thread.  The asyncio side follows through futures and a report.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import mlx.core as mx
import structlog
from mlx.utils import tree_flatten

from config import Config, ConfigError
from pipeline.alertness import Alertness
from pipeline.card import make_card
from pipeline.checkpoint import Checkpoint
from pipeline.engine import Engine
from pipeline.errors import (
    EngineFault,
    EngineStopped,
    FrameError,
    ModelError,
    PipelineError,
    StartFailed,
    TooLittleMemory,
    TransportError,
)
from pipeline.frames import Loaded
from pipeline.joining import join, listen
from pipeline.kernel_files import remove_broken_kernels
from pipeline.link import Links
from pipeline.meeting import Meeting, agree, meet, place_layers
from pipeline.placement import Placement, kv_capacity, limits_of
from pipeline.plan.resources import this_node
from pipeline.ring import Ring, RingTunnel, check_early_receive
from pipeline.sampler import Sampler
from pipeline.sampling.grammar import Grammars, read_vocabulary
from pipeline.scheduler import Scheduler
from pipeline.security import LinkSecurity
from pipeline.served_model import open_checkpoint
from pipeline.timeline import Timeline
from pipeline.worker import Worker

log = structlog.get_logger()

LOAD_TIMEOUT = 24 * 3600.0
"""Seconds that the slowest node may take to fetch and load; a node that dies meanwhile closes its link."""

PORTS_TIMEOUT = 30.0  # seconds; binding takes none


class Phase(Enum):
    """How far a rank has come."""

    JOINING = "joining"
    LOADING = "loading"
    READY = "ready"
    ENDED = "ended"


@dataclass(frozen=True)
class MemoryReport:
    """Bytes, from MLX's own counters."""

    active: int
    peak: int
    cache: int
    limit: int  # what weights and caches may take


class Rank:
    """Start it once; `joined`, `placed`, `opened`, `loaded` and `ended` resolve in this order, or fail with the
    reason.

    Until `joined`, MLX holds the interpreter's lock while it looks for the other ranks: no other thread runs.
    """

    def __init__(
        self,
        config: Config,
        security: Callable[[str], LinkSecurity | None] = lambda _: None,
        tunnel: RingTunnel | None = None,
    ) -> None:
        """`security`: of the links, by the name of the own node; None: plain.  May raise StartFailed."""
        self.config, self._security, self._tunnel = config, security, tunnel
        self.phase = Phase.JOINING
        self.joined: Future[None] = Future()
        self.placed: Future[Placement] = Future()
        self.opened: Future[None] = Future()  # the ports of all ranks
        self.loaded: Future[Engine | None] = Future()  # the engine on rank 0
        self.ended: Future[None] = Future()
        self._ports: Future[str] = Future()  # why this node's ports can't be opened, or ""
        for future in (*self._milestones, self.ended, self._ports):
            future.set_running_or_notify_cancel()  # whoever waits may give up, but not cancel them
        self.load_progress = 0.0  # 0 to 1, of `activity`
        self.activity = "joining the other ranks"
        self.advances = 0  # how often it has got on
        self.parameter_bytes = 0
        self.worker: Worker | None = None
        self._links: Links | None = None
        self._engine: Engine | None = None
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._main, name="engine", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    @property
    def _milestones(self) -> tuple[Future[Any], ...]:
        return self.joined, self.placed, self.opened, self.loaded

    def ports_opened(self, problem: str = "") -> None:
        """Go on after `placed`: this node's other ports are open, or `problem` says why not.

        A problem ends all ranks with the same sentence.
        """
        if not self._ports.done():
            self._ports.set_result(problem)

    def stop(self) -> None:
        """Rank 0: finish the step at hand and let the ring end.  Elsewhere: rank 0's goodbye does it."""
        self._stopping.set()
        self.ports_opened()  # nobody opens them any more; `join` sees that it is over
        if self._engine is not None:
            self._engine.stop()

    def abort(self) -> None:
        """Close the links: a rank that waits for its neighbours ends at once."""
        self._stopping.set()
        if self._links is not None:
            self._links.close()

    def memory(self) -> MemoryReport:
        """What MLX holds at this moment.  Any thread."""
        placed = self.placed.done() and self.placed.exception() is None
        limit = self.placed.result().memory_bytes if placed else 0
        peak = mx.get_peak_memory()
        if self.worker is not None:  # it starts the count of MLX anew with each step
            peak = max(peak, self.worker.stats.peak_memory)
        return MemoryReport(mx.get_active_memory(), peak, mx.get_cache_memory(), limit)

    def traffic(self) -> tuple[int, int, int, int]:
        """Frames sent, frames received, bytes sent, bytes received on the frame links."""
        if self._links is None:
            return 0, 0, 0, 0
        out, into = self._links.outbound, self._links.inbound
        return out.sent_frames, into.received_frames, out.sent_bytes, into.received_bytes

    def _main(self) -> None:
        try:
            self._live()
        except (PipelineError, ConfigError) as error:
            self._end(error)
        except OSError as error:
            self._end(self._explained(error))
        except BaseException as error:  # also what a library means by sys.exit
            self._end(EngineFault(f"{type(error).__name__}: {error}"))
            raise  # a bug, or MLX gave up: let the traceback be seen
        else:
            self._end(None)

    def _explained(self, error: OSError) -> PipelineError:
        """A file or socket that failed, as a sentence; before the ring works, starting again won't help."""
        kind = EngineFault if self.phase is Phase.READY else StartFailed
        place = f" ({error.filename})" if error.filename else ""
        return kind(f"{error.strerror or type(error).__name__}{place}, while {self.activity}")

    def _end(self, error: Exception | None) -> None:
        """Tell everybody who follows this rank; what broke because it was to stop is no error."""
        self.phase = Phase.ENDED
        for future in self._milestones:
            if error is not None and not future.done():
                future.set_exception(error)
        stopped = self._stopping.is_set() and isinstance(error, (TransportError, EngineStopped))
        if error is None or stopped:
            self.ended.set_result(None)
        else:
            self.ended.set_exception(error)

    def _live(self) -> None:
        ring = Ring(self._tunnel)
        self.joined.set_result(None)
        self.activity = "meeting the other ranks"
        placement = self._join(ring)
        self.phase = Phase.LOADING
        self._load(ring, placement)
        try:
            self._work(ring, placement)
        finally:
            if self._links is not None:
                self._links.close()

    def _join(self, ring: Ring) -> Placement:
        """Meet the other ranks, agree on the plan, open all ports, connect the frame links."""
        meeting, checkpoint = self._meet(ring)
        too_little: TooLittleMemory | None = None
        with contextlib.ExitStack() as stack:
            try:
                plan = place_layers(self.config, meeting, checkpoint.costs())
                listener = listen(meeting.host, meeting.node.ports.communication)
                stack.callback(listener.close)
            except (PipelineError, ConfigError) as error:
                problem = str(error)
                too_little = error if isinstance(error, TooLittleMemory) else None
            except OSError as error:
                problem = error.strerror or str(error)
            else:
                placement = Placement(meeting, checkpoint, plan)
                self.activity = "opening the ports"
                self.placed.set_result(placement)
                problem = self._ports_problem()
            try:
                agree(ring, meeting, problem)
            except PipelineError:
                if (
                    too_little is not None
                ):  # found by all of them: whoever started the ring may know more nodes
                    raise too_little from None
                raise
            self.opened.set_result(None)
            network = self.config.network
            self.activity = "connecting to the neighbours"
            if ring.size > 1:
                self._links = join(
                    listener,
                    ring.rank,
                    meeting.peers,
                    meeting.epoch,
                    network.connect_timeout,
                    self._stopping.is_set,
                    network.keepalive,
                    self._security(meeting.node.name),
                )
                if mx.default_device() == mx.gpu:  # else computing needs the core
                    self._links.inbound.alertness = Alertness(network.busy_wait)
        return placement

    def _ports_problem(self) -> str:
        """Wait until this node's other ports are open; why they aren't, or nothing."""
        try:
            return self._ports.result(PORTS_TIMEOUT)
        except FutureTimeout:
            return f"this node's ports were not opened within {PORTS_TIMEOUT:g} s"

    def _meet(self, ring: Ring) -> tuple[Meeting, Checkpoint]:
        config = self.config
        node = config.node_of_rank(ring.rank, ring.size)
        memory = this_node(node.memory_share, node.memory)
        problem = ""
        checkpoint: Checkpoint | None = None
        try:
            check_early_receive(config.network.early_receive)
            self._security(node.name)
            checkpoint = open_checkpoint(config, self._on_progress)
        except (ModelError, ConfigError, StartFailed) as error:
            problem = str(error)
        fingerprint = checkpoint.fingerprint if checkpoint else ""
        card = make_card(config, node, memory, fingerprint, error=problem)
        meeting = meet(ring, config, card)
        if checkpoint is None:
            raise EngineFault("a rank without a model was let in")
        return meeting, checkpoint

    def _load(self, ring: Ring, placement: Placement) -> None:
        layers, checkpoint = placement.layers, placement.checkpoint
        remove_broken_kernels()
        stage = checkpoint.load_stage(layers.start, layers.end, self._on_progress)
        self.parameter_bytes = sum(a.nbytes for _, a in tree_flatten(stage.model.parameters()))
        blueprint = checkpoint.blueprint()
        network = self.config.network
        timeout = network.step_timeout
        sampler = (
            Sampler(checkpoint.vocab_size, self._grammars(checkpoint)) if placement.last else None
        )
        self.worker = Worker(
            stage,
            blueprint.passes,
            ring,
            self._links,
            sampler,
            timeout,
            network.activation_format,
            placement.memory_bytes,
            network.early_receive,
            blueprint.lazy,
        )
        kv_tokens = self._agree_on_loaded(
            ring, kv_capacity(self.config, placement, self.parameter_bytes)
        )
        if ring.rank == 0:
            limits = limits_of(self.config, placement, kv_tokens)
            self._engine = Engine(Scheduler(limits), self.worker, self._links, timeout)
        self.phase, self.activity = Phase.READY, "serving"
        self.loaded.set_result(self._engine)

    def _grammars(self, checkpoint: Checkpoint) -> Grammars:
        """The tokenizer's files are read with the first constraint: few last stages ever need them."""
        trusted = self.config.model.trust_remote_code
        return Grammars(lambda: read_vocabulary(checkpoint.path, checkpoint.vocab_size, trusted))

    def _agree_on_loaded(self, ring: Ring, kv_tokens: int | None) -> int | None:
        """Wait until all ranks have their weights; the cache entries that fit on the tightest one."""
        links = self._links
        if links is None:
            return kv_tokens
        if ring.rank == 0:
            links.outbound.send(Loaded(kv_tokens), self.config.network.step_timeout)
        frame = links.inbound.receive(LOAD_TIMEOUT)
        if not isinstance(frame, Loaded):
            raise FrameError(f"{frame!r} arrived where Loaded was expected")
        known = [count for count in (kv_tokens, frame.kv_tokens) if count is not None]
        tightest = min(known, default=None)
        if ring.rank != 0:
            links.outbound.send(Loaded(tightest), self.config.network.step_timeout)
        return tightest

    def _work(self, ring: Ring, placement: Placement) -> None:
        if self._stopping.is_set():
            return
        assert self.worker is not None
        timeline = Timeline() if self.config.tracing.folder else None
        self.worker.timeline = timeline
        try:
            if self._engine is not None:
                self._engine.run()
            else:
                self.worker.serve()
        finally:
            if timeline is not None:
                self._write(timeline, placement)

    def _write(self, timeline: Timeline, placement: Placement) -> None:
        """A timeline that can't be written is no reason for a rank to end otherwise than it does."""
        folder = Path(self.config.tracing.folder or "")
        try:
            meeting = placement.meeting
            path = timeline.write(folder, meeting.rank, meeting.node.name, meeting.epoch)
        except OSError as error:
            log.error("the timeline could not be written", folder=str(folder), reason=str(error))
        else:
            log.info("timeline written", path=str(path))

    def _on_progress(self, what: str, done: int, total: int) -> None:
        if self._stopping.is_set():
            raise EngineStopped(f"stopped while {what}")
        self.advances += 1  # also where nobody knows how much there is to do
        self.activity = what
        self.load_progress = done / total if total else 1.0
