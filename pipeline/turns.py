"""Whose turn it is: the prompts' next chunk, or the next step of a group that is ready.

Some chunks go freely: one between two steps of a group, and while its step is on the way as many as keep the
stages at work.  Any more make steps wait.  That pays where prompts are about to end their prefill: with B sequences
a round of decode steps takes F + s * B seconds, and F is the same with more of them.  With R that decode, and k that
join after C seconds of prefill, compare "prefill, then a round" with "a round, then prefill".  The prefill is the
same work, and delays what comes behind it either way: of the tokens of the R, only the next one comes C later.  Of
the k, each of m tokens comes earlier by the round F + s * R for which they don't have to wait.  And the R have them
for company a round longer, so each of m tokens comes s * k later.  In all that saves

    k * m * F - R * C

seconds of waiting for tokens, and steps wait while it is above 0.  A stream that stutters is worse than one that
begins later, so those of the R that have had a token count STALL times.  As R grows with each prompt, this ends by
itself: after about m * F seconds, however many prompts come.  Where newcomers need groups of their own, because
groups are full, F grows too, by D, and R * m * D is lost.  For a prompt that is far from its end, C is all that is
left of it.

No stream that has had a token waits for so long that the next one would come later than the bound on inter-token
time allows.  Chunks may hold it up by the stall of the longest one (`pacing.longest_stall`: what goes freely), and
by what each of the others takes in the slowest stage.  These seconds are predicted from those of earlier chunks.
Pure.
"""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.groups import Group, Groups
from pipeline.limits import Limits
from pipeline.pacing import Pacing

HORIZON = 48  # m: so many tokens of each newcomer count; nobody knows whether it makes more
STALL = 3.0  # weight of a second for which a stream that has had a token waits


@dataclass(frozen=True)
class Chunk:
    """The chunk that could go next, and what it leads to.  Predicted seconds of the slowest stage."""

    seconds: float  # of this chunk
    until: float  # until prompts end: of this chunk, or of all that is left of a long one
    joining: tuple[int, ...]  # tokens that each of these is to make


@dataclass(frozen=True)
class Postponed:
    """Chunks for which steps had to wait beyond what goes freely, and their predicted seconds."""

    chunks: int = 0
    seconds: float = 0.0

    def more(self, seconds: float) -> Postponed:
        """With another one."""
        return Postponed(self.chunks + 1, self.seconds + seconds)


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


def weigh(limits: Limits, pacing: Pacing, groups: Groups, chunk: Chunk) -> Verdict:
    """On a chunk that does not go freely."""
    started = [group for group in groups.active if group.started]
    if limits.window == 1:  # then a chunk takes the time of all stages, and nothing goes on beside it
        return Verdict(False)
    if not pacing.chunks.measured:
        return Verdict(bool(groups.active) and not started)
    if not groups.active or not pays(limits, pacing, groups, chunk):
        return Verdict(False)
    late = (group for group in started if not in_time(limits, pacing, group, chunk.seconds))
    return Verdict(True, tuple(late))


def pays(limits: Limits, pacing: Pacing, groups: Groups, chunk: Chunk) -> bool:
    """Whether less time is waited in all if steps wait; see the module's text."""
    active, running = len(groups.active), groups.sequences
    wanted = max(active, -(-(running + len(chunk.joining)) // limits.group_size))
    fixed, more = pacing.fixed_cycle(active), pacing.fixed_cycle(wanted)
    saved = fixed * sum(min(tokens, HORIZON) for tokens in chunk.joining)
    waiting = running + (STALL - 1) * groups.started
    return saved > waiting * chunk.until + running * HORIZON * (more - fixed)


def in_time(limits: Limits, pacing: Pacing, group: Group, seconds: float) -> bool:
    """Whether streams of `group` have their next token within the bound if a chunk goes first."""
    if limits.inter_token is None:
        return True
    before = group.prefill
    extra = before.extra + seconds * group.would_wait(limits.chunks_between)
    stall = pacing.stall(max(before.longest, seconds))
    return stall + extra <= pacing.stall_within(limits.inter_token)
