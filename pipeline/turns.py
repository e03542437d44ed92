"""Whose turn it is: the prompts' next chunk, or the next step of a group that is ready.

Some chunks go freely: one between two steps of a group, and while its step is on the way as many as keep the
stages at work.  Any more make steps wait.  That pays where prompts are about to end their prefill.  A round of
decode steps takes each stage F + s * B seconds for B sequences, and F is the same with more of them.  With R
that decode, and k that join after C seconds of prefill, compare "prefill, then a round" with "a round, then
prefill". The prefill is the same work, and delays what comes behind it either way: of the tokens of the R, only
the next one comes C later. Of the k, each of m tokens comes earlier by the round F + s * R for which they don't
have to wait. And the R have them for company a round longer, so each of m tokens comes s * k later. In all that
saves

    k * m * F - R * C

seconds of waiting for tokens, and steps wait while it is above 0.  F is f for each of G groups, and what a
newcomer brings as a group of its own is not shared: once all N who are there decode in G groups, that is G of
N, so F = f * G * (1 - G / N).  Where groups are full, and k need D more, R * m * f * D is lost.  For a prompt
that is far from its end, C is all that is left of it.  A stream that stutters is worse than one that begins
later, so those of the R that have had a step count STALL times.  As R grows with each prompt, steps don't wait
for ever: at most about m * F seconds, however many prompts come.

No stream that has had a step waits for so long that its next token would come later than the bound on
inter-token time allows.  Chunks may hold it up by the stall of the longest one (`stalls.longest_stall`: what
goes freely), and by what each of the others takes in the slowest stage.  These seconds are predicted from those
of earlier chunks.  Where such streams need a step while others had better wait, it goes with them alone: who
has not had a step is left out.  Pure.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import isfinite

from pipeline.groups import Group, Groups, expected_groups
from pipeline.limits import Limits, Sequence
from pipeline.pacing import Pacing
from pipeline.prefilling import Chunk, Prefilling, Room, coming_work, copied_at_most

# m: so many tokens of each newcomer count, as nobody knows whether it makes more.  In simulated bursts, as in
# tests/scripts/test_simulate_turns.py, half as many cost rate, most with eight stages; twice as many gain none.
HORIZON = 48
# Weight of a second for which a stream that has had a token waits: a preference.  From 1 to 10, simulated loads
# hardly differ.
STALL = 3.0


@dataclass(frozen=True)
class Postponed:
    """Chunks for which steps had to wait beyond what goes freely, and their predicted seconds."""

    chunks: int = 0
    seconds: float = 0.0

    def more(self, chunk: Chunk) -> Postponed:
        """With another one."""
        known = chunk.seconds if isfinite(chunk.seconds) else 0.0
        return Postponed(self.chunks + 1, self.seconds + known)


@dataclass(frozen=True)
class Verdict:
    """Whether steps had better wait for a chunk, and groups whose streams can't."""

    pays: bool
    late: tuple[Group, ...] = ()


def goes_freely(limits: Limits, groups: Groups, in_flight: int) -> bool:
    """Whether a chunk may go whatever it costs; `in_flight`: steps."""
    if not groups.active:
        return in_flight < limits.deep
    most = 1 if groups.ready() is not None else limits.chunks_between
    return groups.chunks_between < most


def weigh(limits: Limits, pacing: Pacing, groups: Groups, chunk: Chunk, everybody: int) -> Verdict:
    """On a chunk that does not go freely; `everybody`: sequences that decode, are prefilled or wait."""
    started = [group for group in groups.active if group.started]
    if limits.window == 1:
        # Then a chunk takes the time of all stages, and nothing goes on beside it.
        return Verdict(False)
    if not pacing.chunks.measured:
        return Verdict(bool(groups.active) and not started)
    if not groups.active or not pays(limits, pacing, groups, chunk, everybody):
        return Verdict(False)
    late = (group for group in started if not in_time(limits, pacing, group, chunk.seconds))
    return Verdict(True, tuple(late))


def is_far(limits: Limits, pacing: Pacing, groups: Groups, first: Sequence, everybody: int) -> bool:
    """Whether `weigh` would find that no step is to wait for a prompt of several chunks, whatever they are.

    To find out what the next chunk would be takes milliseconds, the longer the prompt, and most steps need not.
    """
    if first.to_prefill <= limits.prefill_chunk or not pacing.chunks.measured or not groups.active:
        return False
    cost = pacing.chunks.cost
    least = cost.fixed + cost.work(first.prefilled, first.to_prefill)
    chunk = Chunk(least, least, (first.max_tokens,))
    return not pays(limits, pacing, groups, chunk, everybody)


def pays(limits: Limits, pacing: Pacing, groups: Groups, chunk: Chunk, everybody: int) -> bool:
    """Whether less time is waited in all if steps wait; see the module's text."""
    running, step = groups.sequences, pacing.fixed_step
    final = expected_groups(limits, pacing, everybody)
    shared = step * final * (1 - final / everybody)
    saved = shared * sum(min(tokens, HORIZON) for tokens in chunk.joining)
    fewest = -(-(running + len(chunk.joining)) // limits.group_size)
    more = step * max(0, fewest - len(groups.active))
    waiting = running + (STALL - 1) * groups.started
    return saved > waiting * chunk.until + running * HORIZON * more


def in_time(limits: Limits, pacing: Pacing, group: Group, seconds: float) -> bool:
    """Whether streams of `group` have their next token within the bound if a chunk goes first."""
    if limits.inter_token is None:
        return True
    before = group.prefill
    extra = before.extra + (seconds if group.would_wait(limits.chunks_between) else 0.0)
    stall = pacing.stalls.of(max(before.longest, seconds))
    return stall + extra <= pacing.stall_within(limits.inter_token)


def room_for(
    limits: Limits,
    pacing: Pacing,
    prefilling: Prefilling,
    waiting: Iterable[Sequence],
    groups: Groups,
    taken: int,
) -> Room:
    """What the next step may take of the prompts; `taken`: tokens of running and kept sequences."""
    sizes = pacing.chunks
    return Room(
        tokens=_tokens(limits, pacing, prefilling, waiting, groups),
        rows=limits.prefill_rows,
        padding=sizes.fixed_tokens() if limits.paddable else 0.0,
        copied=copied_at_most(limits, taken),
        attention=sizes.cost.attention,
    )


def _tokens(
    limits: Limits,
    pacing: Pacing,
    prefilling: Prefilling,
    waiting: Iterable[Sequence],
    groups: Groups,
) -> int:
    """As many as keep all stages at work; fewer while they would hold up running streams for too long."""
    most, first, sizes = limits.prefill_chunk, prefilling.first, pacing.chunks
    if limits.window > 1 and not limits.fixed_chunk:
        others = prefilling.work_beside_first(sizes.cost)
        others += coming_work(limits, sizes.cost, waiting)
        beside = pacing.decoding if groups.active else 0.0
        most = sizes.best(first.prefilled, first.prompt - 1, most, others, beside)
    if limits.inter_token is None or not groups.started:
        return most
    return pacing.chunk(limits.inter_token, most, first.prefilled)
