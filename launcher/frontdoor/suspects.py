"""Which requests may be asked of a rank 0 at the same time, and which one breaks it.  No clock, no socket.

When the ring fails, every request under way may be what broke it.  Those that keep getting nothing are
suspects: each new rank 0 is asked for them first, one at a time, and others wait.  One that gets its next token
is cleared and goes on; a fault is counted against a request only if it had rank 0 to itself.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field
from enum import Enum

SUSPICIOUS = 2  # faults in a row without a token in between
MOST_FRUITLESS = 3  # of them that are a request's own, until it is given up
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
    own_fruitless: int = 0
    faults: int = 0
    own: int = 0
    failed_at: Hashable | None = None  # the rank 0 of its last fault
    leader: Hashable | None = None  # that it is asked of now
    _shared: bool = False  # this attempt had rank 0 not to itself
    _got: bool = False  # this attempt had a token
    # own_fruitless and own of its last fault, if it had that alone
    _unclear: tuple[int, int] = (0, 0)

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

    def may_start(self, case: Case, leader: Hashable) -> bool:
        """Whether `leader` may be asked for it now."""
        first = next((c for c in self._queue if _is_tried(c, leader)), None)
        if case is not first:
            return first is None
        others = self._asked.get(leader, set())
        # Those that were cleared go on meanwhile, except beside what is tried to its end.
        return not (others if case.for_good else others.intersection(self._queue))

    def start(self, case: Case, leader: Hashable) -> None:
        """An attempt begins."""
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
        case.fruitless = case.own_fruitless = 0
        case._unclear = (0, case._unclear[1])
        if case not in self._queue or case.for_good:
            return False
        self._queue.remove(case)
        return True

    def end(self, case: Case, *, fault: bool) -> Verdict:
        """The attempt is over, by a fault of the cluster or for another reason.

        Nothing happens to a case that has been forgotten since: the engine had done its part.
        """
        leader = case.leader
        self._leave(case)
        if not fault or leader is None:
            return Verdict.GOES_ON
        if case.failed_at == leader:
            # It still leads: nobody else suffered by the fault before.
            case.own_fruitless += case._unclear[0]
            case.own += case._unclear[1]
        fruitless = int(not case._got)
        case.faults += 1
        case.fruitless += fruitless
        case._unclear = (fruitless, 1) if case._shared else (0, 0)
        if not case._shared:
            case.own += 1
            case.own_fruitless += fruitless
        case.failed_at = leader
        self._enqueue(case)
        if case.own_fruitless >= MOST_FRUITLESS:
            return Verdict.FRUITLESS
        return Verdict.TOO_MANY if case.for_good and case.own >= MOST_OWN else Verdict.GOES_ON

    def forget(self, case: Case) -> None:
        """It is answered, given up, or its client has gone."""
        self._leave(case)
        if case in self._queue:
            self._queue.remove(case)

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


def _is_tried(case: Case, leader: Hashable) -> bool:
    """Not at the rank 0 that it failed at: that lives on, so only it suffered, or is about to be given up."""
    return case.failed_at != leader
