"""Which step comes next: a pure object, events in, work out.  No clock, socket or array inside.

Continuous batching with micro-batches: sequences join and leave between steps; decoding sequences live in
groups, each group has at most one step in flight, and several groups fill the stages one behind the other.
A prompt is cut into chunks which follow each other through the stages without waiting, short prompts side by
side; chunks and decode steps take turns (pipeline.turns), so that prompts delay running streams by a bounded
time.  A finished sequence stays on the stages as long as there is room: a prompt that begins like it, or like
one that still runs, starts from a copy.
"""

from __future__ import annotations

from pipeline.errors import ContextTooLong, QueueFull
from pipeline.fair_queue import FairQueue
from pipeline.groups import Group, Groups, wanted_groups
from pipeline.limits import Limits, Sequence
from pipeline.memory import MemoryState, MemoryWatch
from pipeline.pacing import Pacing
from pipeline.prefilling import Prefilling, Room
from pipeline.prefixes import BLOCK, PrefixCache
from pipeline.steps import Admitted, DecodeBatch, PrefillBatch, StepPlan
from pipeline.turns import Postponed, goes_freely, is_far, room_for, weigh

__all__ = ["Admitted", "DecodeBatch", "Limits", "PrefillBatch", "Scheduler", "StepPlan"]


class Scheduler:
    """See the module's text.  One thread; step ids count up from 0."""

    def __init__(self, limits: Limits, pacing: Pacing | None = None) -> None:
        self.limits = limits
        self.pacing = pacing or Pacing(limits.stages)
        self.prefixes = PrefixCache(limits.prefix_tokens, limits.prefix_sequences, limits.cut_limit)
        self.memory = MemoryWatch(limits.prefix_tokens, limits.max_running, limits.window)
        self.postponed = Postponed()
        self._preempted = 0
        self._waiting = FairQueue()
        self._running: dict[int, Sequence] = {}
        self._prefilling = Prefilling()
        self._followers: list[Sequence] = []  # admitted, but better off waiting for a prefix
        self._due: list[Sequence] = []  # to be copied before their first decode step
        self._groups = Groups(lambda n: wanted_groups(self.limits, self.pacing, n))
        self._admitted: list[Admitted] = []
        self._retained: list[int] = []
        self._released: list[int] = []
        self._in_flight: dict[int, StepPlan] = {}
        self._next_step = self._next_id = 0

    @property
    def waiting(self) -> int:
        """Sequences without caches."""
        return len(self._waiting)

    @property
    def running(self) -> int:
        """Sequences with caches or room for them; not those that have finished."""
        return len(self._running)

    @property
    def groups(self) -> tuple[tuple[int, ...], ...]:
        """Members of each micro-batch, for display; other threads may ask."""
        return self._groups.members

    @property
    def in_flight(self) -> int:
        """Steps without a result."""
        return len(self._in_flight)

    @property
    def memory_state(self) -> MemoryState:
        """How much of its memory the fullest stage uses, and what that kept from being held."""
        watch = self.memory
        return MemoryState(watch.used, watch.budget, watch.reductions, self._preempted)

    @property
    def kv_tokens(self) -> int:
        """Cache entries that are reserved or held; other threads may ask."""
        return sum(s.kv_tokens for s in list(self._running.values())) + self.prefixes.tokens

    @property
    def idle(self) -> bool:
        """Nothing runs, waits or is in flight, and the stages know of every end."""
        ended = self._released or self._retained
        return not (self._waiting or self._running or ended or self._in_flight)

    def reconfigure(self, limits: Limits) -> None:
        """Change limits between two steps; what runs already goes on.

        Those that are not from the configuration have to stay as they are.
        """
        self.limits = limits
        self.memory.max_running = limits.max_running

    # events

    def take_id(self) -> int:
        """An id for a sequence; the scheduler makes sequences of its own for snapshots."""
        self._next_id += 1
        return self._next_id - 1

    def add(
        self,
        sequence: int,
        prompt: int,
        max_tokens: int,
        tokens: tuple[int, ...] = (),
        tenant: str = "",
    ) -> None:
        """Queue a sequence with `prompt` tokens; with these tokens, where they are to be compared with others'.

        Raises QueueFull, or ContextTooLong if it could never run.
        """
        limits = self.limits
        asked = prompt + max_tokens
        for limit in (limits.context, limits.kv_tokens):
            if limit is not None and asked > limit:
                raise ContextTooLong(asked, limit)
        if len(self._waiting) + len(self._running) >= limits.max_requests:
            raise QueueFull(f"{limits.max_requests} requests are running or waiting")
        self._waiting.append(Sequence(sequence, prompt, max_tokens, tokens, tenant))

    def finish(self, sequence: int, tokens: tuple[int, ...] = ()) -> None:
        """The sequence has ended or was cancelled: with the next step its caches are kept, or go.

        `tokens`: prompt and output; without them nothing is kept.  Unknown ids are ignored: a cancellation may
        come after the last token.
        """
        ended = self._running.pop(sequence, None)
        if ended is None:
            self._waiting.remove(sequence)
            return
        self._waiting.give_back(ended)
        self._prefilling.remove(sequence)
        self._followers = [s for s in self._followers if s.id != sequence]
        self._due = [s for s in self._due if s.id != sequence]
        self._groups.leave(sequence)
        if ended.placed:
            dropped = self.prefixes.keep(sequence, tokens[: ended.held])
            if sequence not in dropped:
                self._retained.append(sequence)
            self._release(dropped)
        else:  # the stages have not heard of it
            self.prefixes.forget(sequence)
            self._admitted = [a for a in self._admitted if a.sequence != sequence]

    def observe_memory(self, step: int, used: float, ran: int) -> list[int]:
        """In step `step`, with `ran` sequences running, the fullest stage used the part `used` of its memory.

        Returns the running sequences that have to give up their place, for `preempt`; the latest first.
        """
        running = list(self._running)
        budget = self.memory.observe(step, self._next_step, used, self.prefixes.tokens, ran)
        if budget is None:
            return []
        self.prefixes.max_tokens = (
            self.limits.prefix_tokens if budget.prefix_tokens is None else budget.prefix_tokens
        )
        self.drop_prefixes(self.prefixes.max_tokens)
        most = len(running) if budget.running is None else budget.running
        return running[most:][::-1]

    def preempt(
        self, sequence: int, prompt: int, max_tokens: int, tokens: tuple[int, ...] = ()
    ) -> int:
        """Take a running sequence from the stages, and put it first in the queue.

        It goes on under the returned id, with what it has made so far as part of its prompt; `max_tokens` are
        left to be made.
        """
        tenant = self._running[sequence].tenant
        self.finish(sequence)
        self._preempted += 1
        successor = self.take_id()
        self._waiting.put_first(Sequence(successor, prompt, max_tokens, tokens, tenant))
        return successor

    @property
    def _max_running(self) -> int:
        ceiling = self.memory.budget.running
        most = self.limits.max_running
        return most if ceiling is None else min(most, ceiling)

    def drop_prefixes(self, tokens: int = 0) -> None:
        """Release kept sequences, least recently used first, until at most `tokens` of them are left."""
        self._release(self.prefixes.shrink(tokens))

    def _release(self, sequences: list[int]) -> None:
        self._retained = [s for s in self._retained if s not in sequences]
        known = {a.sequence for a in self._admitted}  # to nobody: snapshots of this very step
        self._admitted = [a for a in self._admitted if a.sequence not in sequences]
        self._released.extend(s for s in sequences if s not in known)

    def absorb(self, step: int, seconds: tuple[float, ...] = ()) -> StepPlan:
        """Step `step` has left the last stage; `seconds` of compute per stage.  Returns what it was.

        Raises KeyError if it is not in flight.
        """
        plan = self._in_flight.pop(step)
        stages = self.limits.stages  # each of them took its part as often as the model loops
        seconds = tuple(sum(seconds[rank::stages]) for rank in range(min(stages, len(seconds))))
        if isinstance(plan.work, DecodeBatch):
            self._groups.land(plan.work.group)
            if seconds:
                self.pacing.observe(len(plan.work.sequences), seconds)
                self._observe_alone(plan.work.sequences, seconds)
            self._groups.rebalance()
        elif plan.work is not None and seconds:
            self.pacing.observe_prefill(plan.work.tokens, seconds, plan.work.attended)
        return plan

    def _observe_alone(self, sequences: tuple[int, ...], seconds: tuple[float, ...]) -> None:
        """A step of one sequence is a chunk of one token, except on the last stage, which has the head."""
        one = self._running.get(sequences[0])
        if one is not None and len(sequences) == 1 and len(seconds) > 1:
            self.pacing.chunks.observe_step(max(seconds[:-1]), one.held)

    # choice

    def choose(self) -> StepPlan | None:
        """The next step, or None until something is absorbed or added."""
        if len(self._in_flight) >= self.limits.window:
            return None
        self._admit()
        due, self._due = self._due, []
        work = self._choose_work()
        if work is None and not (self._released or self._retained):
            self._due = due
            return None
        for sequence in due:
            self._take_snapshot(sequence)
        plan = StepPlan(
            self._next_step,
            tuple(self._admitted),
            tuple(self._retained),
            tuple(self._released),
            work,
        )
        self._hand_out(plan)
        return plan

    def _hand_out(self, plan: StepPlan) -> None:
        self._admitted.clear()
        self._retained.clear()
        self._released.clear()
        self._in_flight[plan.id] = plan
        self._next_step += 1
        for admitted in plan.admitted:
            if admitted.sequence in self._running:
                self._running[admitted.sequence].placed = True
                self.prefixes.grow(admitted.sequence, admitted.length)
        for sequence in plan.work.sequences if plan.work is not None else ():
            running = self._running[sequence]
            running.decoded += isinstance(plan.work, DecodeBatch)
            self.prefixes.grow(sequence, running.held)

    # admission

    def _admit(self) -> None:
        """In the order of the queue: a large request is not overtaken for ever by small ones."""
        limits = self.limits
        for follower in list(self._followers):
            self._reconsider(follower)
        used = self._kv_tokens
        while self._waiting and len(self._running) < self._max_running:
            head = self._waiting.head
            if limits.kv_tokens is not None and used + head.kv_tokens > limits.kv_tokens:
                break
            if head.to_prefill and not self._may_begin(head):
                break
            self._waiting.popleft()
            used += head.kv_tokens
            self._running[head.id] = head
            self._start(head)
        if limits.kv_tokens is not None:
            # What a sequence of this very step starts from may go as well: stages copy before they release.
            self.drop_prefixes(limits.kv_tokens - used)

    @property
    def _kv_tokens(self) -> int:
        return sum(s.kv_tokens for s in self._running.values())

    def _start(self, sequence: Sequence) -> None:
        """From the longest prefix there is, or later, if an older sequence is about to prefill a longer one.

        Waiting costs nothing: the other one does the same work, and has started.
        """
        content = sequence.tokens[:-1]
        found = self.prefixes.find(content)
        promised = self.prefixes.find_promised(sequence.id, content)
        self.prefixes.begin(sequence.id, content)
        length = found.length if found else 0
        if promised is not None and promised.length >= length + BLOCK:
            sequence.awaits = promised
            self._followers.append(sequence)
            return
        if len(content) >= BLOCK:
            self.prefixes.use(found)
        sequence.prefilled = sequence.copied = length
        self._admitted.append(Admitted(sequence.id, found.sequence if found else None, length))
        if sequence.to_prefill:
            self._prefilling.append(sequence)
        else:
            self._groups.join(sequence.id)

    def _reconsider(self, follower: Sequence) -> None:
        """Start one that need not wait any longer: the prefix is there, or who was to make it has ended."""
        if follower.awaits is not None and self.prefixes.pending(follower.awaits):
            return
        if not self._may_begin(follower):
            return
        self._followers.remove(follower)
        self._start(follower)

    def _may_begin(self, sequence: Sequence) -> bool:
        """Whether its prefill may begin beside the others."""
        prefilling, limits = self._prefilling, self.limits
        if prefilling.has_room(limits, sequence.to_prefill):
            return True
        if not prefilling.has_room(limits, 1):
            return False
        found = self.prefixes.find(sequence.tokens[:-1])
        return found is not None and prefilling.has_room(limits, sequence.to_prefill - found.length)

    def _take_snapshot(self, sequence: Sequence) -> None:
        """Keep a copy of what the prompt left, where it can't be cut out of what decoding will make of it."""
        content = sequence.tokens[:-1]
        limit = self.limits.kv_tokens
        room = None if limit is None else limit - self._kv_tokens - len(content)
        if room is not None and room < 0:
            return
        snapshot = self.take_id()
        dropped = self.prefixes.keep(snapshot, content)
        if snapshot in dropped:
            return
        self._admitted.append(Admitted(snapshot, sequence.id, len(content)))
        self._retained.append(snapshot)
        self._release(dropped)
        if room is not None:
            self.drop_prefixes(room + len(content))

    # choice of work

    def _choose_work(self) -> PrefillBatch | DecodeBatch | None:
        late: tuple[Group, ...] = ()
        if self._prefilling:
            chunks, late = self._choose_chunks()
            if chunks is not None:
                return chunks
        ready = self._groups.ready(late)
        if ready is None:
            return None
        return DecodeBatch(ready.id, self._groups.send(ready, self._next_step, hold=bool(late)))

    def _choose_chunks(self) -> tuple[PrefillBatch | None, tuple[Group, ...]]:
        """If it is the prompts' turn; if not, groups whose streams can't wait while the others might."""
        limits, groups = self.limits, self._groups
        pacing, prefilling = self.pacing, self._prefilling
        everybody = min(self._max_running, len(self._running) + len(self._waiting))
        free = goes_freely(limits, groups, len(self._in_flight))
        if not free and self._chunks_in_flight >= limits.deep:
            return None, ()
        if not free and is_far(limits, pacing, groups, prefilling.first, everybody):
            return None, ()
        room = room_for(limits, pacing, prefilling, self._waiting, groups, self.kv_tokens)
        chunk = prefilling.coming(room, pacing.chunks)
        if not free:
            verdict = weigh(limits, pacing, groups, chunk, everybody)
            if not verdict.pays or verdict.late:
                return None, verdict.late
            self.postponed = self.postponed.more(chunk)
        groups.note_chunk(chunk.seconds, limits.chunks_between)
        return self._next_chunks(room), ()

    @property
    def _chunks_in_flight(self) -> int:
        return sum(isinstance(plan.work, PrefillBatch) for plan in self._in_flight.values())

    def _next_chunks(self, room: Room) -> PrefillBatch:
        limits = self.limits
        chunks, done = self._prefilling.take(room)
        for sequence in done:
            self._groups.join(sequence.id)
            if not limits.can_cut(sequence.kv_tokens - 1):  # its prompt out of what it may end as
                self._due.append(sequence)
        return chunks

    def check(self) -> None:
        """Raise AssertionError if a sequence is in two places or none: for tests and for idle self-checks."""
        grouped = [s for members in self._groups.members for s in members]
        waiting = [s.id for s in (*self._prefilling, *self._followers)]
        places = grouped + waiting
        assert len(places) == len(set(places)), f"a sequence is in two places: {places}"
        assert set(places) == set(self._running), f"{places} are placed, {list(self._running)} run"
        ended = {*self._released, *self._retained, *self.prefixes.kept}
        assert not ended & set(self._running), "a running sequence is to be released, or was kept"
        assert not set(self._released) & set(self.prefixes.kept), (
            "a kept sequence is to be released"
        )
        self._groups.check(set(self._in_flight))
