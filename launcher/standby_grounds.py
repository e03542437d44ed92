"""What those who wait were started with, and whether it still holds: a pure comparison.

It is little: who has its rank reads the configuration anew, and is told the ring's addresses.
"""

from __future__ import annotations

from dataclasses import dataclass

from config import ModelConfig
from launcher.job import JobSpec
from launcher.nodes import Cluster


@dataclass(frozen=True)
class Grounds:
    """`model`: the one that they read ahead; `spec`: of a job, whose hostfile is written for it."""

    spec: JobSpec
    cluster: Cluster
    model: ModelConfig


def why_outdated(begun: Grounds, now: Grounds | None) -> str:
    """Why those who were started on the grounds of `begun` are of no use any more; empty: they are.

    Who waits on a node that has been taken out does no harm, and a node without anybody is for `choose` to see.
    """
    if now is None:
        return "nobody is to wait any more"
    if now.spec != begun.spec:
        return "they are started by another command now"
    if now.model.origin != begun.model.origin:
        return f"the model is {now.model.name} now"
    if now.cluster.common != begun.cluster.common:
        return "the hostfile has other envs now"
    entries = {member.name: member.entry for member in now.cluster.members}
    for member in begun.cluster.members:
        if entries.get(member.name, member.entry) != member.entry:
            return f"the hostfile has another entry for {member.name} now"
    return ""
