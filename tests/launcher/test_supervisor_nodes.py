"""Which nodes the supervisor reckons with: as they are configured, reached and lost; without any rank."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from starlette.testclient import TestClient

from launcher.decide import Cause, Start, next_action
from launcher.epoch import Times
from launcher.hostfile import local_hostfile
from launcher.probe import LOST_PATIENCE
from launcher.status import rendered, status_of
from launcher.supervisor import Supervisor
from launcher.watch import Fault


def test_a_node_that_a_broken_epoch_has_lost_takes_no_part_in_the_next(
    supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether it can be reached is known before the next epoch is decided on."""
    patience: dict[str, float] = {}

    def why_no_login(host: str, seconds: float) -> str:
        patience[host] = seconds
        return "ssh to mini2 fails" if host == "mini2" else ""

    monkeypatch.setattr("launcher.probe.why_no_login", why_no_login)
    local, *others = supervisor.cluster.members
    members = [local, *(replace(m, entry={**m.entry, "ssh": m.name}) for m in others)]
    lost = supervisor._lookout._lost

    async def lose() -> None:
        lost.search(members)
        lost.search(members)  # found broken, and then ended
        await supervisor._lookout.find_lost()
        await supervisor._lookout.find_lost()

    asyncio.run(lose())
    assert patience == {member.ssh: LOST_PATIENCE for member in members[1:]}
    action = next_action(supervisor._observed(), supervisor._policy)
    assert isinstance(action, Start)
    assert sorted(action.order) == ["master", "mini1"]


def test_a_restart_over_a_broken_configuration_is_refused_and_nothing_happens(
    supervisor: Supervisor, client: TestClient
) -> None:
    hostfile = supervisor._lookout._files._hostfile
    hostfile.write_text("[")
    refused = client.post("/admin/restart")
    assert refused.status_code == 400
    message = refused.json()["error"]["message"]
    assert "nothing is restarted" in message
    assert str(hostfile) in message
    assert supervisor.wishes.restart == ""
    # as before a start, which goes on with what is known
    assert supervisor._lookout.changed_files() is None
    assert len(supervisor.cluster.members) == 3


def test_a_restart_takes_nodes_and_settings_as_they_are_on_disk(
    supervisor: Supervisor, client: TestClient
) -> None:
    supervisor._lookout._files._hostfile.write_text(local_hostfile(2))
    folder = supervisor._starter._launch.folder
    (folder / "cluster.yaml").write_text("launcher: {backoff_max: 7}")
    nodes = yaml.safe_load((folder / "nodes.yaml").read_text())
    del nodes["nodes"]["master"]
    (folder / "nodes.yaml").write_text(yaml.safe_dump(nodes))
    answer = client.post("/admin/restart")
    assert answer.status_code == 202, answer.text
    assert [node["name"] for node in answer.json()["nodes"]] == ["mini1", "mini2"]
    assert supervisor._policy.backoff_max == 7
    action = next_action(supervisor._observed(), supervisor._policy)
    assert action == Start(("mini1", "mini2"))


def add_mini3(supervisor: Supervisor) -> None:
    """To the files on disk, on another machine."""
    folder = supervisor._starter._launch.folder
    nodes = yaml.safe_load((folder / "nodes.yaml").read_text())
    nodes["nodes"]["mini3"] = {"node_id": 3, "host": "mini3.test", "ports": [8600, 8601, 8602]}
    (folder / "nodes.yaml").write_text(yaml.safe_dump(nodes))
    hosts = [*json.loads(local_hostfile(3)), {"ssh": "mini3.test", "ips": ["192.0.2.1"]}]
    supervisor._lookout._files._hostfile.write_text(json.dumps(hosts))


def test_a_node_that_was_added_takes_no_part_before_it_was_looked_for(
    supervisor: Supervisor,
) -> None:
    """A cluster that serves is not stopped for a node that may not be there."""
    add_mini3(supervisor)
    supervisor._use(supervisor._lookout.changed_files())
    assert supervisor._wake.is_set()
    assert len(supervisor.cluster.members) == 4
    assert set(supervisor.down) == {"mini3"}
    action = next_action(supervisor._observed(), supervisor._policy)
    assert action == Start(("mini1", "mini2", "master"))


@pytest.mark.parametrize("is_busy", [False, True])
def test_a_restart_takes_a_new_node_only_if_that_is_looked_for(
    supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch, is_busy: bool
) -> None:
    """One search at a time: while others are looked for, it is one that nobody has found yet."""
    asked: list[str] = []

    def why_no_login(host: str, seconds: float) -> str:
        asked.append(host)
        return ""

    monkeypatch.setattr("launcher.probe.why_no_login", why_no_login)
    silent = [replace(m, entry={**m.entry, "ssh": m.name}) for m in supervisor.cluster.members[1:]]
    add_mini3(supervisor)
    lost = supervisor._lookout._lost

    async def restart() -> None:
        if is_busy:
            lost.heed(silent, is_suspicious=True)
        supervisor._use(supervisor._lookout.files_for_now())
        assert await lost.found() == {}

    asyncio.run(restart())
    assert ("mini3.test" in asked, set(supervisor.down)) == (
        (False, {"mini3"}) if is_busy else (True, set())
    )


def ended(supervisor: Supervisor, order: Sequence[str], cause: Cause, node: str) -> Any:
    """An epoch of these that has ended, by what happened on `node`."""
    fault = Fault("on mini2: mini3 is not a node of nodes.yaml", node)
    return SimpleNamespace(
        ended=True,
        number=2,
        order=tuple(order),
        members=supervisor.cluster.named(order),
        cause=cause,
        fault=fault,
        asked_to_stop="",
        times=Times(),
    )


@pytest.mark.parametrize("mended", ["files", "restart"])
def test_a_new_node_with_which_no_ring_starts_is_left_out_until_somebody_mends_it(
    supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch, mended: str
) -> None:
    """The others go on as before, and none of them is blamed."""
    monkeypatch.setattr("launcher.probe.why_no_login", lambda host, seconds: "")
    four = ("mini1", "mini2", "master", "mini3")

    async def live() -> None:
        supervisor.history = replace(supervisor.history, ever_ready=True)
        add_mini3(supervisor)
        supervisor._use(supervisor._lookout.changed_files())
        await supervisor._lookout.look_for(("mini1", "mini2", "master"))
        assert not supervisor.down
        supervisor.epoch = ended(supervisor, four, Cause.NEVER_STARTED, "mini2")
        supervisor._notice_end()
        await supervisor._lookout.find_lost()
        assert list(supervisor.refused) == ["mini3"]
        assert "mini3 is not a node of nodes.yaml" in rendered(status_of(supervisor))
        assert supervisor.records == {}
        later = replace(supervisor._observed(), now=time.monotonic() + 1)
        action = next_action(later, supervisor._policy)
        assert isinstance(action, Start)
        assert set(action.order) == {"mini1", "mini2", "master"}
        if mended == "restart":
            supervisor.restart()
        else:
            path = supervisor._starter._launch.folder / "cluster.yaml"
            path.write_text("launcher: {backoff_max: 7}")
            supervisor._use(supervisor._lookout.changed_files())
        assert not supervisor.refused
        # Once it has served it is like any other.
        supervisor._lookout.served(four)
        supervisor.epoch = ended(supervisor, four, Cause.NEVER_STARTED, "mini2")
        supervisor._notice_end()
        assert not supervisor.refused
        assert list(supervisor.records) == ["mini2"]

    asyncio.run(live())


def test_nodes_are_looked_for_as_soon_as_somebody_is_silent(
    supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that it is known who is lost when the epoch is given up; after a false alarm nothing of it counts."""
    why = {"mini2": "ssh to mini2 fails"}
    monkeypatch.setattr("launcher.probe.why_no_login", lambda host, seconds: why.get(host, ""))
    local, *others = supervisor.cluster.members
    members = [local, *(replace(m, entry={**m.entry, "ssh": m.name}) for m in others)]
    lost = supervisor._lookout._lost

    async def suspect() -> None:
        lost.heed(members, is_suspicious=True)
        lost.heed(members, is_suspicious=True)
        search = lost._search
        assert search is not None
        await search
        lost.heed(members, is_suspicious=False)
        assert await lost.found() == {}
        lost.heed(members, is_suspicious=True)
        lost.search(members)  # it has broken
        assert await lost.found() == why

    asyncio.run(suspect())
