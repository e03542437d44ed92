"""Looks around for the supervisor: what the files on disk say now, and which nodes can be reached."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from launcher.files import UNUSABLE, Files, Found
from launcher.logs import LogStream
from launcher.nodes import Cluster, Member
from launcher.probe import LostNodes, unreachable


class Lookout:
    """All methods belong to the event loop.

    By the names of nodes, `down` says why they can't be reached, `refused` why they are left out all the same.
    """

    def __init__(
        self, files: Files, cluster: Cluster, logs: LogStream, woken: Callable[[], None]
    ) -> None:
        """`woken` is called when something has changed."""
        self.down: dict[str, str] = {}
        self.refused: dict[str, str] = {}
        self._new: set[str] = set()  # they were added while this runs, and have not served yet
        self._tried: set[str] = set()  # by the start after which new ones were left out last
        self._pardoned: set[str] = set()  # that they were left out for was taken back
        self._files, self._cluster, self._logs, self._woken = files, cluster, logs, woken
        self._lost = LostNodes()

    # the files

    def changed_files(self) -> Found | None:
        """What has changed on disk, if anything, unless it can't be used."""
        try:
            return self._taken_up(self._files.changed())
        except UNUSABLE as error:
            self._logs.say("the configuration on disk can't be used", "warning", reason=str(error))
            return None

    def files_for_now(self) -> Found | None:
        """Likewise, for a start that is to come now.  Raises one of `files.UNUSABLE`."""
        found = self._files.read()
        self.refused, self._pardoned = {}, set()  # they may have been mended on their own disks
        return self._taken_up(found, wanted=True)

    def _taken_up(self, found: Found | None, wanted: bool = False) -> Found | None:
        if found is None:
            return None
        known = {member.name for member in self._cluster.members}
        self._cluster, self.refused, self._pardoned = found.cluster, {}, set()
        self._new |= {member.name for member in found.cluster.members} - known
        new = [m for m in found.cluster.members if m.name not in known and not m.is_local]
        if new and not (wanted and self._lost.search(new, patient=False)):
            # as long as `look_for` has not found it
            self.down |= {member.name: "nobody has looked for it yet" for member in new}
        self._woken()
        nodes = ", ".join(member.name for member in found.cluster.members)
        self._logs.say("the configuration has changed on disk", "info", nodes=nodes)
        if kept := ", ".join(found.kept):
            self._logs.say("the launcher goes on as it was started", "warning", settings=kept)
        return found

    # the nodes

    @property
    def usable(self) -> list[str]:
        """Those that a launch may include, as far as is known."""
        out = {*self.down, *self.refused}
        return [member.name for member in self._cluster.members if member.name not in out]

    def search(self, members: Sequence[Member]) -> None:
        """Of an epoch that breaks: who of them is still there is told by `find_lost`."""
        self._lost.search(members)

    def heed(self, members: Sequence[Member], is_suspicious: bool) -> None:
        """Of an epoch that serves: see LostNodes."""
        self._lost.heed(members, is_suspicious)

    def served(self, nodes: Sequence[str]) -> None:
        """A ring of these works."""
        self._new.difference_update(nodes)

    def refuse_new(self, nodes: Sequence[str], reason: str) -> bool:
        """A ring of these could not be started: leave out those that are new, if any are.

        Until the files change, or a restart is asked for.  Without them it had worked.
        """
        new = [name for name in nodes if name in self._new]
        self._tried = set(nodes) if new else set()
        for name in new:
            self.refused[name] = reason
            self._logs.say("a new node is left out", "warning", name=name, reason=reason)
        return bool(new)

    async def find_lost(self) -> None:
        """Before the next launch is decided on."""
        lost = await self._lost.found()
        tried, self._tried = self._tried, set()
        if tried & lost.keys():
            self._pardon(tried & self.refused.keys() - self._pardoned)
        self._are_down({**self.down, **lost})

    def _pardon(self, nodes: set[str]) -> None:
        """Their start has lost somebody, so it says little of them.  Once: each try ends a ring that works."""
        for name in nodes:
            del self.refused[name]
            self._logs.say("a new node is not left out: another try is due", "info", name=name)
        self._pardoned |= nodes

    async def look_for(self, others: Sequence[str]) -> None:
        """All but these: those that take no part may be back, or gone."""
        members = [m for m in self._cluster.members if m.name not in others]
        found = await unreachable(members)
        left = {n: w for n, w in self.down.items() if n not in [m.name for m in members]}
        self._are_down({**left, **found})

    def _are_down(self, down: dict[str, str]) -> None:
        before, self.down = self.down, down
        if down.keys() != before.keys():
            self._woken()
        for name in down.keys() - before.keys():
            self._logs.say("a node can't be reached", "warning", name=name, reason=down[name])
