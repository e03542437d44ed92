"""Which requests may be asked of a rank 0 at the same time, and which one breaks it.  No socket; `now` is in
seconds of any clock.

When the ring fails, every request under way may be what broke it.  Those that keep getting nothing are
suspects: each new rank 0 is asked for them first, one at a time, and others wait.  One that gets its next token
is cleared and goes on; a fault is counted against a request only if it had rank 0 to itself.  `blame` says when
such faults are too many, and when rank 0 has to do without the request for a while.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field
from enum import Enum

from launcher.frontdoor.blame import Trials

SUSPICIOUS = 2  # faults in a row without a token in between
MOST_FAULTS = 20  # after which it is tried alone to its end: it may break rank 0 after each token
MOST_OWN = 3  # faults of its own, of one that had so many


class Verdict(Enum):
    """What is to become of a request after a fault."""

    GOES_ON = "goes on"
    FRUITLESS = "fruitless"
    TOO_MANY = "too many"


@dataclass(eq=False)
class Case:
    """What is held against one request.  Faults count as its own if nothing else can have been the cause."""

    fruitless: int = 0  # faults in a row without a token in between
    trials: Trials = field(default_factory=Trials)  # those that were its own
    faults: int = 0
    own: int = 0
    failed_at: Hashable | None = None  # the rank 0 of its last fault
    leader: Hashable | None = None  # that it is asked of now
    waits_at: Hashable | None = None  # the rank 0 of which it is not asked yet
    _shared: bool = False  # this attempt had rank 0 not to itself
    _got: bool = False  # this attempt had a token
    _since: float = 0.0  # it is asked of one, or waits at one
    # Of its last fault, if nothing else was the cause: fruitless, and seconds of that.
    _unclear: tuple[bool, float] | None = None

    @property
    def for_good(self) -> bool:
        """Tried alone to its end."""
        return self.faults >= MOST_FAULTS

    @property
    def is_suspect(self) -> bool:
        return self.fruitless >= SUSPICIOUS or self.for_good


@dataclass
class Suspects:
    """Of one front door.  After each change those that wait may ask again whether they may start."""

    _queue: list[Case] = field(default_factory=list)
    _asked: dict[Hashable, set[Case]] = field(default_factory=dict)
    _suspected_at: Hashable | None = None  # the rank 0 that failed last under one of them

    def meet(self, case: Case, leader: Hashable, now: float) -> None:
        """It waits until `leader` may be asked for it."""
        if case.waits_at == leader:
            return
        if case.waits_at not in (None, self._suspected_at):
            case.trials = case.trials.failed_without()
        case.waits_at, case._since = leader, now

    def pause(self, case: Case, now: float) -> float:
        """Seconds for which the rank 0 at which it waits is still to be watched without it."""
        return max(0.0, case._since + case.trials.pause - now)

    def may_start(self, case: Case, leader: Hashable, now: float) -> bool:
        """Whether `leader`, at which it waits, may be asked for it now."""
        if self.pause(case, now):
            return False
        first = next((c for c in self._queue if self._is_tried(c, leader, now)), None)
        if case is not first:
            return first is None
        others = self._asked.get(leader, set())
        # Those that were cleared go on meanwhile, except beside what is tried to its end.
        return not (others if case.for_good else others.intersection(self._queue))

    def start(self, case: Case, leader: Hashable, now: float) -> None:
        """An attempt begins."""
        if case.trials.pause and case.waits_at == leader:
            case.trials = case.trials.held_without(now - case._since)
        case.waits_at, case._since = None, now
        others = self._asked.setdefault(leader, set())
        case.leader, case._got, case._shared = leader, False, bool(others)
        for other in others:
            other._shared = True
        others.add(case)

    def got_token(self, case: Case) -> bool:
        """Something came of the attempt.  Whether others may start by that."""
        if case._got:
            return False
        case._got = True
        case.fruitless, case.trials = 0, Trials()
        if case._unclear is not None:
            case._unclear = (False, 0.0)
        if case not in self._queue or case.for_good:
            return False
        self._queue.remove(case)
        return True

    def end(self, case: Case, now: float, *, fault: bool) -> Verdict:
        """The attempt is over, by a fault of the cluster or for another reason.

        Nothing happens to a case that has been forgotten since: the engine had done its part.
        """
        leader, before = case.leader, case.trials
        self._leave(case)
        if not fault or leader is None:
            return Verdict.GOES_ON
        if case in self._queue:
            self._suspected_at = leader
        if case._unclear is not None and case.failed_at == leader:
            _count(case, *case._unclear)  # it still leads: nobody else suffered by the fault before
        fruitless, seconds = not case._got, now - case._since
        case.faults += 1
        case.fruitless += fruitless
        case._unclear = (fruitless, seconds) if case._shared else None
        if not case._shared:
            _count(case, fruitless, seconds)
        case.failed_at = leader
        self._enqueue(case)
        if case.trials is not before and case.trials.is_guilty:
            return Verdict.FRUITLESS
        return Verdict.TOO_MANY if case.for_good and case.own >= MOST_OWN else Verdict.GOES_ON

    def forget(self, case: Case) -> None:
        """It is answered, given up, or its client has gone."""
        self._leave(case)
        if case in self._queue:
            self._queue.remove(case)

    def _is_tried(self, case: Case, leader: Hashable, now: float) -> bool:
        """Not while it is kept away, nor at the rank 0 that it failed at: it lives on, so only the request
        suffered, or is about to be given up.
        """
        if case.failed_at == leader:
            return False
        if not case.trials.pause or case.leader == leader:
            return True
        return case.waits_at == leader and not self.pause(case, now)

    def _leave(self, case: Case) -> None:
        others = self._asked.get(case.leader)
        if others is not None:
            others.discard(case)
            if not others:
                del self._asked[case.leader]
        case.leader = None

    def _enqueue(self, case: Case) -> None:
        """Who was tried when the fault came keeps its place, and so is tried first, and alone, next time."""
        if case.for_good and case in self._queue:
            self._queue.remove(case)
        if case.for_good:
            self._queue.insert(0, case)
        elif case.is_suspect and case not in self._queue:
            self._queue.append(case)


def _count(case: Case, fruitless: bool, seconds: float) -> None:
    """A fault of its own."""
    case.own += 1
    if fruitless:
        case.trials = case.trials.failed(seconds)
