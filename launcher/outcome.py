"""Reads from the output of a job how it ended.

mlx.launch exits 0 whatever became of its ranks, but tells their fate on stderr. A rank says why it
gives up in its last line: `fatal: <one sentence>`, or `lost: <one sentence>` when it ends only because
another rank did.
"""

from __future__ import annotations

import re
import signal
from dataclasses import dataclass, field

from server import exit_status

LAST_WORDS = re.compile(r"(?P<kind>fatal|lost): (?P<sentence>\S.*)")
UNRESPONSIVE = re.compile(r"unresponsive: (?P<sentence>\S.*)")  # said by launcher.mlx_launch
RING_FATE = re.compile(
    r"Node with rank (?P<rank>\d+) (?:exited with code (?P<code>-?\d+)|was killed)"  # by mlx.launch
)
MPI_RANK = re.compile(r"Process name: \[.*,(?P<rank>\d+)\]")
MPI_CODE = re.compile(r"Exit code: +(?P<code>\d+)")
MPI_SIGNAL = re.compile(r"process rank (?P<rank>\d+) .*exited on signal (?P<signal>\d+)")

ERROR_STATUS = 1
# Of ranks that end because of another one: their neighbour has gone, or mlx.launch has ended them.
CONSEQUENCES = (exit_status.LOST, -signal.SIGTERM)


@dataclass(frozen=True)
class RankFailure:
    """How a rank ended: its exit status, negative for a signal as in `subprocess`."""

    rank: int
    code: int

    def __str__(self) -> str:
        return f"rank {self.rank} {_fate(self.code)}"


def _fate(code: int) -> str:
    if code >= 0:
        return f"exited with status {code}"
    if code == -signal.SIGALRM:  # a deadline that holds even while MLX lets no Python run
        return "waited too long for the other ranks to start"
    try:
        return f"was killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"was killed by signal {-code}"


@dataclass(frozen=True)
class Outcome:
    """One finished job.

    `reasons` are sentences for the user, each once; empty when it ended well. `first_failure` is the
    rank that failed first, mlx.launch then ends the others: the first that failed by itself, as a neighbour
    may be seen to end before the rank whose end it noticed. `stopped` tells that it was asked to.
    """

    status: int
    reasons: tuple[str, ...] = ()
    first_failure: RankFailure | None = None
    stopped: bool = False


@dataclass
class Transcript:
    """Fed with the job's output line by line, finds what it says about the ranks' fate."""

    causes: list[str] = field(default_factory=list)
    consequences: list[str] = field(default_factory=list)
    failures: list[RankFailure] = field(default_factory=list)
    unresponsive: list[str] = field(default_factory=list)
    stopping: bool = False
    places: tuple[int, ...] | None = None  # by rank: mlx.launch's number for it, if that is another
    _mpi_rank: int | None = None

    @property
    def has_failed(self) -> bool:
        """Whether a rank has said that it gives up; its exit follows."""
        return bool(self.causes or self.consequences)

    @property
    def culprit(self) -> RankFailure | None:
        """The first rank known to have ended by itself."""
        return next((f for f in self.failures if f.code not in CONSEQUENCES), None)

    def feed(self, line: str) -> bool:
        """Take in one line; True when it is for the user to see now."""
        if line.startswith("{"):  # of a rank's log, which may quote what a client has sent
            return True
        if match := LAST_WORDS.fullmatch(line.rstrip()):
            sentences = self.causes if match["kind"] == "fatal" else self.consequences
            if match["sentence"] not in sentences:
                sentences.append(match["sentence"])
            return False
        if match := UNRESPONSIVE.fullmatch(line.rstrip()):
            self.unresponsive.append(match["sentence"])
            return False
        if match := RING_FATE.search(line):
            self._failed(int(match["rank"]), int(match["code"] or -signal.SIGTERM))
            return False
        self._feed_mpi(line)
        return True

    def _feed_mpi(self, line: str) -> None:
        if match := MPI_SIGNAL.search(line):
            self._failed(int(match["rank"]), -int(match["signal"]))
        elif match := MPI_RANK.search(line):
            self._mpi_rank = int(match["rank"])
        elif self._mpi_rank is not None and (match := MPI_CODE.search(line)):
            self._failed(self._mpi_rank, int(match["code"]))

    def _failed(self, rank: int, code: int) -> None:
        if self.places is not None:
            if rank not in self.places:
                return  # it was left out
            rank = self.places.index(rank)
        # Once asked to stop, a rank that dies of the signal has only obeyed.
        if not self.stopping:
            self.failures.append(RankFailure(rank, code))

    def _why_lost(self, first: RankFailure | None) -> list[str]:
        """A rank that was killed can't say why, and what its neighbours lost by it says less."""
        killed = first is not None and first.code < 0 and first.code not in CONSEQUENCES
        if first is not None and (killed or not self.consequences):
            return [str(first)]
        return self.consequences[:1]

    def outcome(self, launch_status: int) -> Outcome:
        """The job's end, given the exit status of mlx.launch."""
        first = self.culprit or next(iter(self.failures), None)
        reasons = [*(self.causes or self._why_lost(first)), *self.unresponsive]
        if not reasons and launch_status and not self.stopping:
            reasons.append(f"mlx.launch {_fate(launch_status)}")
        code = first.code if first else launch_status
        failed = code if 0 < code < 128 else ERROR_STATUS
        return Outcome(failed if reasons else 0, tuple(reasons), first, self.stopping)
