"""What operators ask of the supervisor, without any rank."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from starlette.testclient import TestClient

from launcher.decide import Phase
from launcher.status import rendered, status_of, summary_of
from launcher.supervisor import Supervisor
from launcher.watch import WishView
from tests.launcher.conftest import Door


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
