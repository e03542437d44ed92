"""What operators ask of the supervisor, without any rank."""

from __future__ import annotations

import asyncio
import io
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from starlette.testclient import TestClient

from config import Settings, load
from launcher.admin import admin_routes
from launcher.decide import Cause, Phase, Start, next_action
from launcher.door import LeaderAddress
from launcher.epoch import Times
from launcher.hostfile import local_hostfile
from launcher.logs import LogStream
from launcher.nodes import Cluster
from launcher.probe import LOST_PATIENCE
from launcher.starter import Launch
from launcher.status import rendered, status_of, summary_of
from launcher.supervisor import Supervisor
from launcher.watch import Fault, WishView
from server.node.app import node_app


@dataclass
class Door:
    """Remembers what it was told."""

    drained: list[bool] = field(default_factory=list)
    leaders: list[LeaderAddress | None] = field(default_factory=list)

    async def start(self) -> None: ...

    async def stop(self, grace: float) -> None: ...

    def leader_changed(
        self, address: LeaderAddress | None, reason: str = "", permanent: bool = False
    ) -> None:
        self.leaders.append(address)

    def drain(self, on: bool) -> None:
        self.drained.append(on)

    def in_flight(self) -> int:
        return 0

    def stats(self) -> dict[str, object]:
        return {"in_flight": 0}


@pytest.fixture
def supervisor(tmp_path: Path) -> Iterator[Supervisor]:
    hostfile = tmp_path / "hostfile.json"
    hostfile.write_text(local_hostfile(3))
    folder = tmp_path / "config"
    folder.mkdir()
    (folder / "cluster.yaml").touch()
    (folder / "nodes.yaml").write_text(Path("config/nodes.yaml").read_text())
    (folder / "models.yaml").write_text(Path("config/models.yaml").read_text())

    def read(more: Sequence[str]) -> Settings:
        return load(folder, {}, ["launcher.log_folder=none", *more])

    settings = read(())
    launch = Launch(hostfile, "ring", 32323, 1.0, ("true",), read, folder)
    logs = LogStream(out=io.StringIO(), error=io.StringIO())
    made = Supervisor(launch, settings, Cluster.of(settings.config, hostfile), logs)
    made.door = Door()
    yield made
    logs.close()


@pytest.fixture
def client(supervisor: Supervisor) -> TestClient:
    return TestClient(node_app(admin_routes(supervisor)))


def epoch(**asked: Any) -> Any:
    return SimpleNamespace(granted=WishView(), asked=WishView(1, **asked))


def test_the_coordinator_can_ask_for_a_leader_and_for_a_drain(supervisor: Supervisor) -> None:
    supervisor._grant(epoch(leader="mini2", draining=True))
    assert supervisor.wishes.leader == "mini2"
    assert supervisor.draining


def test_a_wish_is_granted_once(supervisor: Supervisor) -> None:
    asked = epoch(leader="mini2")
    supervisor._grant(asked)
    supervisor.lead("master")  # over HTTP, later
    asked.asked = WishView(2, "mini2", True)  # a wish of another kind carries it along
    supervisor._grant(asked)
    assert supervisor.wishes.leader == "master"
    assert supervisor.draining


def test_any_leader_will_do_again(supervisor: Supervisor) -> None:
    supervisor.lead("mini2")
    supervisor._grant(epoch(leader=""))
    assert supervisor.wishes.leader is None


def test_leading_and_draining_over_http(supervisor: Supervisor, client: TestClient) -> None:
    assert client.post("/admin/lead", json={"node": "master"}).status_code == 202
    assert supervisor.wishes.leader == "master"
    assert client.post("/admin/lead", json={"node": None}).json()["election"]["wanted"] is None
    assert client.post("/admin/drain").json()["draining"]
    assert not client.post("/admin/undrain").json()["draining"]
    assert isinstance(supervisor.door, Door)
    assert supervisor.door.drained == [True, False]


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/admin/lead", b'{"node": "mini9"}', "node"),
        ("/admin/lead", b'{"node": 3}', "node"),
        ("/admin/lead", b'{"node": "mini1", "x": 1}', "node"),
        ("/admin/lead", b"[]", "node"),
        ("/admin/lead", b"{", None),
        ("/admin/lead", b"[" * 4000, None),
        ("/admin/lead", b" " * 5000, None),
        ("/admin/models/switch", b'{"model": null}', "model"),
        ("/admin/models/switch", b'{"model": "nobodys"}', "model"),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(
    supervisor: Supervisor, client: TestClient, path: str, body: bytes, param: str | None
) -> None:
    before = supervisor.wishes
    response = client.post(path, content=body)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == param
    assert supervisor.wishes == before


def test_another_model_can_be_wanted_once_at_a_time(
    supervisor: Supervisor, client: TestClient
) -> None:
    assert client.post("/admin/models/switch", json={"model": "qwen2.5-7b"}).status_code == 202
    assert client.get("/admin/models/switch").json()["wanted"] == "qwen2.5-7b"
    supervisor.models.draining()
    refused = client.post("/admin/models/switch", json={"model": "smollm2-135m"})
    assert "qwen2.5-7b is being loaded" in refused.json()["error"]["message"]


def test_a_request_for_another_model_waits_for_a_switch_under_way(supervisor: Supervisor) -> None:
    supervisor.switch_for_request("qwen2.5-7b")
    supervisor.models.draining()
    supervisor.switch_for_request("smollm2-135m")
    assert supervisor.models.wanted == "qwen2.5-7b"


def test_the_status_names_all_nodes_before_anything_runs(supervisor: Supervisor) -> None:
    supervisor._lookout.down["mini2"] = "ssh to mini2 fails"
    text = rendered(status_of(supervisor))
    assert all(name in text for name in ("mini1", "mini2", "master", "ssh to mini2 fails"))


def test_what_breaks_a_look_around_ends_the_launcher(
    supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken() -> None:
        raise RuntimeError("a bug")

    async def waiting() -> int:
        await asyncio.Event().wait()
        return 0

    monkeypatch.setattr(supervisor, "_look", broken)
    monkeypatch.setattr(supervisor, "_supervise", waiting)
    with pytest.raises(RuntimeError, match="a bug"):
        asyncio.run(asyncio.wait_for(supervisor.run(Door()), 30))


def test_who_has_no_key_learns_no_host_and_no_login(supervisor: Supervisor) -> None:
    supervisor._lookout.down["mini2"] = "ssh to operator@mini2 fails"
    assert "operator@mini2" in str(status_of(supervisor))
    assert summary_of(supervisor) == {
        "state": "waiting",
        "reason": "",
        "draining": False,
        "epoch": 0,
        "leader": None,
    }


def test_a_launcher_that_is_to_stop_waits_for_no_request_to_end(
    supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Requests under way may hold up a change of the model, not the end."""
    door = Door()
    monkeypatch.setattr(door, "in_flight", lambda: 1)
    supervisor.door = door
    supervisor.epoch = SimpleNamespace(  # type: ignore[assignment]
        ended=False, view=lambda in_flight: SimpleNamespace(phase=Phase.READY), stop=print
    )
    supervisor.models.want("qwen2.5-7b")

    async def switch() -> None:
        switching = asyncio.create_task(supervisor._switch_if_wanted())
        while not door.drained:
            await asyncio.sleep(0)
        supervisor.stop()
        await asyncio.wait_for(switching, supervisor.config.launcher.drain_timeout / 2)

    asyncio.run(switch())


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
