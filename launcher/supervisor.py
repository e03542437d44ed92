"""Keeps a cluster serving: starts epochs, watches them, and does what `launcher.decide` says.

Everything that waits has a deadline or is woken: by a signal, an admin request, the end of a job, or a look at
rank 0.  The front door keeps the clients meanwhile.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from config import ConfigError, Settings
from launcher import decide
from launcher.breaker import Record
from launcher.decide import (
    Action,
    Cause,
    End,
    Finish,
    GiveUp,
    History,
    Node,
    Observed,
    Phase,
    Start,
    Stop,
    Wait,
    Wishes,
    next_action,
)
from launcher.door import Door, LeaderAddress
from launcher.epoch import RunningEpoch
from launcher.files import Files, Found
from launcher.frontdoor import metrics
from launcher.logs import LogStream
from launcher.lookout import Lookout
from launcher.models import ModelSwitch, SwitchInProgress
from launcher.nodes import Cluster
from launcher.policy import configured_leader, policy_of
from launcher.probe import HealthProbe
from launcher.recoveries import Broken, Recoveries, recovery_of
from launcher.scratch import Scratch
from launcher.starter import Launch, Starter
from server.tls.contexts import launcher_tls

PROBE_NODES_EVERY = 10.0  # seconds between two looks for nodes that take no part
STOP_DEADLINE = 30.0  # seconds for a job to end after it was asked; it bounds itself below that
DOOR_GRACE = 2.0  # seconds for open responses when the launcher ends


class Supervisor:
    """See the module's text.  `run` once."""

    def __init__(
        self, launch: Launch, settings: Settings, cluster: Cluster, logs: LogStream
    ) -> None:
        config = settings.config
        self.config, self.cluster = config, cluster
        self._logs = logs
        self._policy = policy_of(config)
        self.started = time.monotonic()
        self.history = History()
        self.wishes = Wishes(leader=configured_leader(config))
        self.records: dict[str, Record] = {}
        self.epoch: RunningEpoch | None = None
        self.last: RunningEpoch | None = None
        self.recoveries = Recoveries()
        self.models = ModelSwitch(config.model.name)
        self.waiting_for = ""  # why nothing runs, or nothing is changed
        self._broken: Broken | None = None  # what is recovered from
        self._wake = asyncio.Event()
        self._probe = HealthProbe(launcher_tls(config.tls))
        self._scratch = Scratch()
        files = Files(config, cluster, launch.load, launch.hostfile, launch.folder)
        self._lookout = Lookout(files, cluster, logs, self._wake.set)
        self._starter = Starter(launch, config, cluster, logs, Path(self._scratch.name))
        self.standby = self._starter.standby
        self.door: Door | None = None
        self.draining = False

    @property
    def down(self) -> Mapping[str, str]:
        """Why nodes can't be reached, by name."""
        return self._lookout.down

    @property
    def refused(self) -> Mapping[str, str]:
        """Why the ranks could not start with new nodes, which are left out, by name."""
        return self._lookout.refused

    # what operators ask for; all of it takes effect with the next decision

    def stop(self) -> None:
        """End the cluster and the launcher; asked again, without waiting for the ranks."""
        if self.wishes.stop and self.epoch is not None:
            self.epoch.stop("stopped", at_once=True)
        self.wishes = replace(self.wishes, stop=True)
        self._wake.set()

    def restart(self, reason: str = "a restart was asked for") -> None:
        """Start a new epoch over all nodes that can take part; those that were kept out get another chance.

        Raises one of `files.UNUSABLE`, and restarts nothing, if that could not work.
        """
        self._use(self._lookout.files_for_now())
        with contextlib.suppress(SwitchInProgress):
            self.models.want_configured()
        self.records = {}
        self.history = replace(self.history, too_small=())
        self.wishes = replace(self.wishes, restart=reason)
        self.standby.drop(reason)  # what was imported may have changed since
        self._wake.set()

    def lead(self, node: str | None) -> None:
        """Let `node` lead as long as it is there; None: as the strategy says.  Raises KeyError for no node."""
        if node is not None:
            self.cluster.named([node])
        self.wishes = replace(self.wishes, leader=node)
        self._wake.set()

    def drain(self, on: bool) -> None:
        """Take no new requests, or take them again."""
        self.draining = on
        if self.door is not None:
            self.door.drain(on)

    def switch_model(self, name: str) -> None:
        """Serve another model of models.yaml.  Raises KeyError for an unknown one."""
        if name not in self.config.models and name != self.config.model.name:
            raise KeyError(name)
        self.models.want(name)
        self._wake.set()

    def switch_for_request(self, name: str) -> None:
        """A request wants this configured model; a change that is under way comes first."""
        with contextlib.suppress(SwitchInProgress):
            self.switch_model(name)

    def _use(self, found: Found | None) -> None:
        """What the files say now holds from the next start on."""
        if found is None:
            return
        before, self.config, self.cluster = self.config, found.config, found.cluster
        self._policy = policy_of(found.config)
        self._starter.use(found.config, found.cluster)
        self.models.configured(found.config.model.name)
        if configured_leader(found.config) != configured_leader(before):
            self.wishes = replace(self.wishes, leader=configured_leader(found.config))

    # the loop

    async def run(self, door: Door) -> int:
        """Until it is stopped, or it makes no sense to go on; the exit status."""
        self.door = door
        await door.start()
        main = asyncio.create_task(self._supervise())
        tasks = [main, asyncio.create_task(self._look()), asyncio.create_task(self._probe_nodes())]
        try:
            # The two that look around never end by themselves: what breaks one of them ends all.
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done - {main}:
                task.result()
            return main.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await asyncio.gather(self._end_epoch(), self.standby.end())
            await door.stop(DOOR_GRACE)
            await self._probe.close()
            self._scratch.cleanup()

    async def _supervise(self) -> int:
        while True:
            self._wake.clear()
            self._notice_end()
            if self.epoch is None:  # before the next launch is decided on
                await self._lookout.find_lost()
                self._use(self._lookout.changed_files())
            await self._switch_if_wanted()
            action = next_action(self._observed(), self._policy)
            if isinstance(action, Finish):
                return 0
            if isinstance(action, GiveUp):
                self._logs.close()
                for reason in self._reasons() or (action.reason,):
                    print(f"error: {reason}", file=sys.stderr, flush=True)
                return 1
            await self._do(action)

    async def _do(self, action: Action) -> None:
        if isinstance(action, Start):
            self._start(action.order)
        elif isinstance(action, Stop):
            assert self.epoch is not None
            self._say_down(action.reason)
            self._log("ending the epoch", reason=action.reason, epoch=self.epoch.number)
            self.epoch.stop(action.reason, action.at_once)
            if action.at_once:
                self._lookout.search(self.epoch.members)
        elif isinstance(action, Wait):
            if action.reason != self.waiting_for:
                self.waiting_for = action.reason
                self._say_why(action)
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._wake.wait(), max(0.0, action.until - time.monotonic()))

    def _say_why(self, wait: Wait) -> None:
        if self.epoch is None:
            self._say_down(wait.reason, wait.permanent)
            self._log("waiting", reason=wait.reason)
        elif wait.reason:
            self._log("the ring stays as it is", "warning", reason=wait.reason)

    def _observed(self) -> Observed:
        in_flight = self.door.in_flight() if self.door is not None else 0
        epoch = self.epoch.view(in_flight) if self.epoch is not None else None
        nodes = tuple(self._node(member.name) for member in self.cluster.members)
        return Observed(time.monotonic(), nodes, epoch, self.history, self.wishes)

    def _node(self, name: str) -> Node:
        # Of the last epoch: its rank 0 and its heartbeats are gone when the next one is decided on.
        last = self.last
        missed = 0.0
        for rank in last.ranks if last is not None else ():
            if rank.node == name and rank.heartbeat_age is not None:
                missed = rank.heartbeat_age / self.config.coordinator.health_check_interval - 1
        record = self.records.get(name, Record())
        return Node(name, name in self._lookout.usable, record, max(0.0, missed))

    def _start(self, order: Sequence[str]) -> None:
        self.waiting_for = ""
        self.wishes = replace(self.wishes, restart="")
        try:
            self.epoch = self._starter.start(order, self.models.arguments, self._wake.set)
        except ConfigError as error:
            end = End(time.monotonic(), Cause.NEVER_STARTED, str(error), tuple(order))
            self.history = decide.after(self.history, end)
            return
        self.last = self.epoch
        self._say_down("the ranks are starting")

    def _notice_end(self) -> None:
        """Take in what has become of the epoch."""
        epoch = self.epoch
        if epoch is None:
            return
        if not epoch.ended:
            if epoch.times.ready is not None and self.history.ready_epoch != epoch.number:
                self._became_ready(epoch)
            return
        self.epoch = None
        cause, fault = epoch.cause, epoch.fault
        now = time.monotonic()
        end = End(now, cause, epoch.asked_to_stop or fault.reason, epoch.order)
        if cause is not Cause.STOPPED:
            end = replace(end, reason=fault.reason)
            self._lookout.search(epoch.members)
            self._log("the epoch has ended", "warning", cause=cause.value, reason=fault.reason)
            explained = self._revert_model(cause, fault.reason)
            if cause is Cause.NEVER_STARTED and not explained:
                explained = self._lookout.refuse_new(epoch.order, fault.reason)
            if fault.node is not None and not explained:
                self.records = decide.blame(self.records, fault.node, self._policy.breaker, now)
        self.history = decide.after(self.history, end)
        if self._broken is None and self.history.ever_ready:
            self._broken = Broken(epoch.times, cause, end.reason, fault.node)
        self._say_down(end.reason)

    def _became_ready(self, epoch: RunningEpoch) -> None:
        self.history = decide.ready(self.history, epoch.number)
        self.models.loaded()
        self._lookout.served(epoch.order)
        leader = epoch.leader
        address = LeaderAddress(leader.host, leader.node.ports.inference, epoch.number, leader.name)
        assert self.door is not None
        self.door.leader_changed(address)
        self._log("serving", epoch=epoch.number, leader=leader.name, nodes=len(epoch.order))
        if self._broken is not None:
            broken, self._broken = self._broken, None
            recovery = recovery_of(broken, epoch.times, epoch.number, epoch.order, epoch.waited)
            self.recoveries.add(recovery)
            if broken.cause is not Cause.STOPPED:
                metrics.FAILOVERS.inc()
                metrics.RECOVERY_SECONDS.observe(recovery.total_s)
            self._logs.say("recovered", "info", **recovery.document())

    async def _switch_if_wanted(self) -> None:
        """Let running requests end, then start with the other model."""
        epoch = self.epoch
        if not self.models.due or epoch is None or epoch.view(0).phase is not Phase.READY:
            return
        assert self.door is not None
        self.models.draining()
        self.door.drain(True)
        deadline = time.monotonic() + self.config.launcher.drain_timeout
        while (
            self.door.in_flight()
            and time.monotonic() < deadline
            and not (epoch.ended or self.wishes.stop)
        ):
            await asyncio.sleep(self.config.launcher.probe_interval)
        self.door.drain(self.draining)
        self.models.loading()
        self.wishes = replace(self.wishes, restart=f"the model {self.models.wanted} is wanted")

    def _revert_model(self, cause: Cause, reason: str) -> bool:
        """Go back to the model that was served before, if a new one could not be."""
        if cause is Cause.DIED or not self.models.is_loading:
            return False
        self.models.failed(reason)
        self.history = replace(self.history, too_small=())
        return True

    # looking around

    async def _look(self) -> None:
        while True:
            epoch, pause = self.epoch, self.config.launcher.probe_interval
            await (asyncio.sleep(pause) if epoch is None else epoch.news(pause))
            epoch = self.epoch
            if epoch is not None and not epoch.ended:
                await epoch.look(self._probe)
                if self._calm_since() is not None:
                    self._lookout.heed(epoch.members, epoch.watch.is_suspicious(time.monotonic()))
                self._grant(epoch)
            self.standby.tend(time.monotonic(), self._calm_since(), self._lookout.usable)

    def _calm_since(self) -> float | None:
        """Since when the epoch at hand serves; None if it does not, or not for long any more."""
        if self.epoch is None or self.wishes.stop or self.wishes.restart:
            return None
        view = self.epoch.view(0)
        return view.ready_at if view.phase is Phase.READY and not view.fault else None

    def _grant(self, epoch: RunningEpoch) -> None:
        """Do what somebody asked of the coordinator since the last look.

        A new wish carries the earlier ones along, which may have been overtaken by a request to /admin: only
        what has changed counts.
        """
        before, now = epoch.granted, epoch.asked
        epoch.granted = now
        if now.leader is not None and now.leader != before.leader:
            self._log("the coordinator was asked for another leader", leader=now.leader or "any")
            self.lead(now.leader or None)
        if now.draining is not None and now.draining != before.draining:
            self._log("the coordinator was asked to drain", on=now.draining)
            self.drain(now.draining)

    async def _probe_nodes(self) -> None:
        """Look after nodes that take no part: gone ones may be back."""
        while True:
            self._use(self._lookout.changed_files())
            if self.epoch is not None or self.history.last is not None:
                await self._lookout.look_for(self.epoch.order if self.epoch is not None else ())
            await asyncio.sleep(PROBE_NODES_EVERY)

    async def _end_epoch(self) -> None:
        if self.epoch is None or self.epoch.ended:
            return
        self.epoch.stop("stopped")
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self.epoch.wait(), STOP_DEADLINE)

    # telling

    def _say_down(self, reason: str, permanent: bool = False) -> None:
        assert self.door is not None
        self.door.leader_changed(None, reason, permanent)

    def _log(self, event: str, level: str = "info", **fields: object) -> None:
        self._logs.say(event, level, **fields)

    def _reasons(self) -> tuple[str, ...]:
        if self.last is None or self.last.outcome is None or self.last.watch.fault is not None:
            return ()
        return self.last.outcome.reasons
