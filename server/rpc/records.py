"""What the control plane knows, as immutable values without any gRPC in them.

Written by a rank: Registration, RankReport, Heartbeat, TimelineReport, LogBatch.  Written by the coordinator:
RankSnapshot, ClusterSnapshot, TimelineOrder.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from server.rpc.wishes import Wishes

LEADER = 0  # rank that tokenizes, schedules and coordinates


class RankState(Enum):
    """The life of a rank, in order; DEAD is never reported but concluded from silence."""

    STARTING = "starting"
    LOADING = "loading"
    READY = "ready"
    DRAINING = "draining"
    FAILED = "failed"
    DEAD = "dead"


@dataclass(frozen=True)
class Ports:
    """TCP ports of one node."""

    inference: int
    communication: int
    health: int


@dataclass(frozen=True)
class Versions:
    """What must match between nodes for their layers to fit together."""

    python: str
    mlx: str
    mlx_lm: str
    project: str


@dataclass(frozen=True)
class Registration:
    """What stays the same about a rank for as long as it runs."""

    epoch: int
    rank: int
    size: int
    node: str
    host: str
    pid: int
    ports: Ports
    layer_start: int
    layer_end: int  # half-open: the first layer of the next rank
    num_layers: int
    model: str
    fingerprint: str
    versions: Versions

    @property
    def layers(self) -> tuple[int, int]:
        """First and last layer, both inclusive, as people read ranges."""
        return self.layer_start, self.layer_end - 1


@dataclass(frozen=True)
class Memory:
    """Bytes, as MLX reports them on the rank."""

    active: int = 0
    peak: int = 0
    cache: int = 0
    limit: int = 0  # 0: no limit


@dataclass(frozen=True)
class Counters:
    """Totals since the rank started."""

    frames_sent: int = 0
    frames_received: int = 0
    bytes_sent: int = 0
    bytes_received: int = 0


@dataclass(frozen=True)
class StageTimes:
    """What the steps of a stage took since the rank started."""

    steps: int = 0
    compute_s: float = 0.0
    wait_s: float = 0.0  # for the stage before
    transfer_s: float = 0.0  # until the next stage had taken what was sent
    sent_bytes: int = 0  # of hidden states, to the next stage


@dataclass(frozen=True)
class Resources:
    """The machine of a rank and the rank's process; None: the platform does not tell."""

    cores: int = 0
    cpu_percent: float = 0.0  # of all cores together
    memory_used: int = 0  # bytes, as all others
    memory_total: int = 0
    process_cpu_percent: float = 0.0  # of one core
    process_memory: int = 0
    disk_used: int = 0  # of the file system that holds the model
    disk_total: int = 0
    network_sent: int = 0  # since the machine started
    network_received: int = 0
    temperature_c: float | None = None  # of the hottest sensor
    power_w: float | None = None


@dataclass(frozen=True)
class TimelineOrder:
    """A wish of the coordinator: record what the stage does in these seconds, and send it."""

    id: int  # from 1
    start_s: float  # Unix time of the coordinator's clock
    seconds: float


@dataclass(frozen=True)
class TimelineSpan:
    """One activity of a rank.  `start_s` is Unix time of the coordinator's clock."""

    activity: int  # its place in pipeline.timeline.ACTIVITIES
    start_s: float
    seconds: float
    step: int


@dataclass(frozen=True)
class TimelineReport:
    """What one rank did while a timeline was recorded, or a part of it."""

    epoch: int
    rank: int
    node: str
    order: int
    spans: tuple[TimelineSpan, ...]
    more: bool = False  # another part follows


@dataclass(frozen=True)
class LogBatch:
    """Lines that a rank has written."""

    epoch: int
    rank: int
    node: str
    lines: tuple[str, ...]  # JSON objects
    dropped: int = 0  # since the rank started


@dataclass(frozen=True)
class RankReport:
    """How a rank is, by its own account; the content of a heartbeat."""

    state: RankState
    reason: str = ""
    load_progress: float | None = None  # 0 to 1, while loading
    parameter_bytes: int = 0  # held by this stage; 0 until loaded
    memory: Memory = Memory()
    sequences: int = 0
    last_step_age_s: float | None = None  # None before the first step
    counters: Counters | None = None
    stage: StageTimes | None = None  # None until loaded
    resources: Resources | None = None  # None before the first look


@dataclass(frozen=True)
class Heartbeat:
    """A report with the sender's identity."""

    epoch: int
    rank: int
    node: str
    report: RankReport
    config_revision: int = 0


@dataclass(frozen=True)
class HealthPolicy:
    """When silence counts as death."""

    interval_s: float = 5.0  # between two heartbeats of a rank
    failure_threshold: int = 3  # intervals without a heartbeat

    @property
    def patience_s(self) -> float:
        """Longest silence of a living rank."""
        return self.interval_s * self.failure_threshold


@dataclass(frozen=True)
class RankSnapshot:
    """One registered rank, as the coordinator sees it at one moment."""

    registration: Registration
    report: RankReport | None  # the last one; None before the first heartbeat
    config_revision: int  # the latest the rank has applied
    state: RankState
    reason: str
    heartbeat_age_s: float  # since registration, before the first heartbeat

    @property
    def rank(self) -> int:
        return self.registration.rank

    @property
    def node(self) -> str:
        return self.registration.node


@dataclass(frozen=True)
class ClusterSnapshot:
    """The whole cluster, as the coordinator sees it at one moment."""

    epoch: int
    size: int
    config_revision: int
    ranks: tuple[RankSnapshot, ...]  # registered ones, by rank
    wishes: Wishes = field(default_factory=Wishes)

    @property
    def missing(self) -> tuple[int, ...]:
        """Ranks that have not registered."""
        present = {rank.rank for rank in self.ranks}
        return tuple(rank for rank in range(self.size) if rank not in present)

    @property
    def broken(self) -> tuple[RankSnapshot, ...]:
        """Ranks that are dead or say that they failed."""
        return tuple(r for r in self.ranks if r.state in (RankState.DEAD, RankState.FAILED))

    @property
    def ready(self) -> bool:
        """Every rank of the ring is registered and ready."""
        return not self.missing and all(r.state is RankState.READY for r in self.ranks)

    @property
    def reason(self) -> str:
        """Why not ready, in one sentence, the gravest first; empty when ready."""
        for rank in self.broken or self.ranks:
            if rank.state is not RankState.READY:
                detail = f": {rank.reason}" if rank.reason else ""
                return f"rank {rank.rank} ({rank.node}) is {rank.state.value}{detail}"
        if self.missing:
            names = ", ".join(str(rank) for rank in self.missing)
            verb = "ranks {} have" if len(self.missing) > 1 else "rank {} has"
            return f"{verb.format(names)} not registered yet"
        return ""

    def digest(self) -> tuple[object, ...]:
        """Equal for snapshots that no watcher needs to tell apart: no ages, no byte counts."""
        ranks = tuple(
            (r.registration, r.state, r.reason, r.report and r.report.load_progress)
            for r in self.ranks
        )
        return self.epoch, self.config_revision, self.wishes, ranks
