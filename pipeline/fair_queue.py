"""Sequences that wait, of several tenants who take turns by tokens; first come, first served within one.

Start-time fair queueing: each tenant has a mark, the tokens it has had by a common reckoning, and the one with
the lowest mark is next.  Who comes back after a while starts from the mark that is served at the moment, with
no credit of silence, and not behind all that others have queued meanwhile.  So a single sequence waits for at
most one of each other tenant, and of two that always have some waiting neither gets ahead of the other by
more than a sequence of each.  With one tenant this is a plain queue.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from itertools import chain

from pipeline.limits import Sequence


class FairQueue:
    """See the module's text.  `len` may be asked by other threads."""

    def __init__(self) -> None:
        self._lines: dict[str, deque[Sequence]] = {}  # by tenant; none is empty
        self._first: deque[Sequence] = deque()  # lost their places, and are due before all others
        self._marks: dict[str, int] = {}  # tokens; above `_now` for who has no line
        self._now = 0  # the mark of the sequence served last
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[Sequence]:
        """All of them; not in the order in which they will be served."""
        return chain(self._first, *self._lines.values())

    def append(self, sequence: Sequence) -> None:
        """Behind the others of its tenant."""
        line = self._lines.setdefault(sequence.tenant, deque())
        if not line:
            self._marks[sequence.tenant] = self._mark(sequence.tenant)
        line.append(sequence)
        self._length += 1

    def put_first(self, sequence: Sequence) -> None:
        """Before all others: it was served before."""
        self._first.appendleft(sequence)
        self._length += 1

    @property
    def head(self) -> Sequence:
        """Who is next.  Raises IndexError if nobody is."""
        if self._first:
            return self._first[0]
        if not self._lines:
            raise IndexError("nobody waits")
        return self._lines[self._next_tenant()][0]

    def popleft(self) -> Sequence:
        """Serve the head; its tenant is charged with all tokens that it may come to need."""
        if self._first:
            sequence = self._first.popleft()
        else:
            tenant = self._next_tenant()
            self._now = self._marks[tenant]
            sequence = self._lines[tenant].popleft()
            self._drop_if_empty(tenant)
        self._length -= 1
        self._marks[sequence.tenant] = self._mark(sequence.tenant) + sequence.kv_tokens
        self._forget_marks()
        return sequence

    def give_back(self, sequence: Sequence) -> None:
        """One that was served has ended: what it did not use is not charged."""
        tenant, unused = sequence.tenant, sequence.kv_tokens - sequence.held
        if tenant in self._marks:
            self._marks[tenant] = max(self._now, self._marks[tenant] - unused)
            self._forget_marks()

    def remove(self, sequence: int) -> None:
        """Take it out, wherever it waits; unknown ones are ignored."""
        for line in (self._first, *self._lines.values()):
            for place, waiting in enumerate(line):
                if waiting.id == sequence:
                    del line[place]
                    self._length -= 1
                    self._drop_if_empty(waiting.tenant)
                    self._forget_marks()
                    return

    def _next_tenant(self) -> str:
        """The lowest mark; of equal ones, whose sequence came first."""
        return min(self._lines, key=lambda tenant: (self._marks[tenant], self._lines[tenant][0].id))

    def _mark(self, tenant: str) -> int:
        return max(self._now, self._marks.get(tenant, self._now))

    def _drop_if_empty(self, tenant: str) -> None:
        if tenant in self._lines and not self._lines[tenant]:
            del self._lines[tenant]

    def _forget_marks(self) -> None:
        """Of tenants without a line, marks that say no more than `_now` does."""
        self._marks = {t: m for t, m in self._marks.items() if t in self._lines or m > self._now}
