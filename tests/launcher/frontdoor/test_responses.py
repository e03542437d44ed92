"""Stored responses outlive the rank 0 that made them, and are their owner's at the front door too."""

from __future__ import annotations

import asyncio
import json
import random
from pathlib import Path
from typing import Any

import httpx
import pytest
from structlog.testing import capture_logs

from server.access.middleware import Guard
from server.access.policy import AccessPolicy
from server.access.principal import KeyLimits
from server.access.store import KeyStore
from server.api.app import create_app
from server.api.responses import store
from server.replay.records import KEPT_HEADER
from tests.launcher.frontdoor.doors import DEADLINE_S, client_of, opened
from tests.launcher.frontdoor.rank0 import Rank0, Steered
from tests.launcher.frontdoor.test_restart import at
from tests.server.access.helpers import add_key

pytestmark = pytest.mark.anyio

PATH = "/v1/responses"
FIRST = {"model": "tiny", "input": "hi", "seed": 5, "max_output_tokens": 6, "ignore_eos": True}


def following(made: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {**FIRST, "input": "and then?", "previous_response_id": made["id"], **more}


async def made_by(client: httpx.AsyncClient, body: dict[str, Any], **headers: str) -> Any:
    answer = await client.post(PATH, json=body, headers=headers)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def test_a_conversation_goes_on_at_the_next_rank_0() -> None:
    first, second = Rank0(), Rank0(Steered(random.Random(2)))
    async with opened() as door, client_of(door) as client:
        door.leader_changed(await first.start())
        made = await made_by(client, FIRST)
        undisturbed = await made_by(client, following(made))
        door.leader_changed(None, "a rank has died")
        await first.kill()
        door.leader_changed(await second.start(2))
        again = await made_by(client, following(made))
        assert again["output"][0]["content"] == undisturbed["output"][0]["content"]
        [before, after] = first.engine.requests[1], second.engine.requests[0]
        assert before.prompt == after.prompt
        counted = await client.post(
            f"{PATH}/input_tokens", json={"model": "tiny", **_input_of(following(made))}
        )
        assert counted.json()["input_tokens"] == len(after.prompt)
        # What can be done with it is answered without any rank.
        door.leader_changed(None, "a rank has died")
        shown = await client.get(f"{PATH}/{made['id']}")
        assert shown.json() == made
        items = (await client.get(f"{PATH}/{made['id']}/input_items")).json()
        assert items["data"][0]["content"][0]["text"] == "hi"
        assert (await client.delete(f"{PATH}/{made['id']}")).json()["deleted"]
        gone = await client.post(PATH, json=following(made))
        assert gone.status_code == 404
        assert gone.json()["error"]["param"] == "previous_response_id"
        await second.stop()


def _input_of(body: dict[str, Any]) -> dict[str, Any]:
    return {name: body[name] for name in ("input", "previous_response_id")}


@pytest.mark.parametrize("stream", [False, True])
async def test_an_answer_that_goes_on_from_another_survives_as_any(stream: bool) -> None:
    first, second = Rank0(), Rank0(Steered(random.Random(2)))
    async with opened() as door, client_of(door) as client:
        door.leader_changed(await first.start())
        made = await made_by(client, FIRST)
        whole = await made_by(client, following(made))
        first.engine.stops_at = at(3)
        asked = asyncio.create_task(client.post(PATH, json=following(made, stream=stream)))
        await asyncio.wait_for(first.engine.reached.wait(), DEADLINE_S)
        door.leader_changed(None, "a rank has died")
        await first.kill()
        door.leader_changed(await second.start(2))
        answer = await asyncio.wait_for(asked, DEADLINE_S)
        assert answer.status_code == 200
        document = answer.json() if not stream else _last(answer.text)
        assert document["output"][0]["content"] == whole["output"][0]["content"]
        # It is kept as well, once.
        assert (await client.get(f"{PATH}/{document['id']}")).json() == document
        assert len(door.gate.responses.store) == 3
        await second.stop()


def _last(text: str) -> Any:
    events = [line[6:] for line in text.split("\n") if line.startswith("data: ")]
    return json.loads(events[-1])["response"]


async def test_what_is_not_to_be_stored_is_not() -> None:
    rank0 = Rank0()
    async with opened() as door, client_of(door) as client:
        door.leader_changed(await rank0.start())
        made = await made_by(client, {**FIRST, "store": False})
        assert len(door.gate.responses.store) == 0
        assert (await client.get(f"{PATH}/{made['id']}")).status_code == 404
        refused = await client.post(PATH, json={**FIRST, "previous_response_id": 3})
        assert refused.status_code == 400  # for rank 0 to say
        await rank0.stop()


async def test_one_that_is_too_long_is_not_kept_and_whoever_asks_is_told_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(store, "MAX_PARTS", 500)
    rank0 = Rank0()
    async with opened() as door, client_of(door) as client:
        door.leader_changed(await rank0.start())
        with capture_logs() as logs:
            made = await made_by(client, {**FIRST, "input": "secret"})
            following_it = await client.post(PATH, json=following(made))
            shown = await client.get(f"{PATH}/{made['id']}")
        assert (following_it.status_code, shown.status_code) == (404, 404)
        error = following_it.json()["error"]
        assert error["param"] == "previous_response_id"
        for message in (error["message"], shown.json()["error"]["message"]):
            assert "at most 500 are kept" in message
        [line] = [line for line in logs if line["event"] == "a response is too long to be kept"]
        assert "secret" not in str(line)
        assert line["bytes"] > 500
        await rank0.stop()


async def test_each_key_has_its_own(tmp_path: Path) -> None:
    keys_file = tmp_path / "keys.json"
    keys = [add_key(keys_file), add_key(keys_file)]
    rank0 = Rank0()
    guard = Guard(AccessPolicy(KeyStore(keys_file)))
    settings = [
        "access.enabled=true",
        f"access.keys_file={keys_file}",
        f"access.audit.file={tmp_path / 'audit'}",
    ]
    async with opened(*settings) as door, client_of(door) as client:
        door.leader_changed(
            await rank0.start(make_app=lambda service: create_app(service, guard=guard))
        )
        made = await made_by(client, FIRST, authorization=f"Bearer {keys[0]}")
        for key, status in ((keys[0], 200), (keys[1], 404), ("", 401)):
            headers = {"authorization": f"Bearer {key}"} if key else {}
            shown = await client.get(f"{PATH}/{made['id']}", headers=headers)
            assert shown.status_code == status
            gone_on = await client.post(PATH, json=following(made), headers=headers)
            assert gone_on.status_code == status
        await rank0.stop()
    lines = [json.loads(line) for line in (tmp_path / "audit.front-door").read_text().splitlines()]
    told = [line for line in lines if line["route"] == f"{PATH}/{{response_id}}"]
    assert [line["status"] for line in told] == [200, 404, 401]
    assert told[0]["key"] == keys[0][5:17]


async def test_what_is_done_with_stored_ones_is_limited_for_each_key(tmp_path: Path) -> None:
    """Here, where it is answered; and what is counted at rank 0 is not counted here."""
    keys_file = tmp_path / "keys.json"
    key, other = add_key(keys_file, limits=KeyLimits(requests_per_minute=2)), add_key(keys_file)
    rank0 = Rank0()
    guard = Guard(AccessPolicy(KeyStore(keys_file)))
    async with (
        opened("access.enabled=true", f"access.keys_file={keys_file}") as door,
        client_of(door) as client,
    ):
        door.leader_changed(
            await rank0.start(make_app=lambda service: create_app(service, guard=guard))
        )
        headers = {"authorization": f"Bearer {key}"}
        made = [await made_by(client, FIRST, **headers) for _ in range(3)]
        path = f"{PATH}/{made[0]['id']}"
        answers = [
            await client.request(method, made_path, headers=headers)
            for method, made_path in (
                ("GET", f"{path}/input_items"),
                ("DELETE", path),
                ("GET", path),
                ("DELETE", path),
            )
        ]
        assert [answer.status_code for answer in answers] == [200, 200, 429, 429]
        left = [answer.headers["x-ratelimit-remaining-requests"] for answer in answers]
        assert left == ["1", "0", "0", "0"]
        assert answers[-1].headers["retry-after"]
        assert (await client.get(path, headers={"x-api-key": other})).status_code == 404
        assert "x-ratelimit-limit-requests" not in (await client.get("/ready")).headers
        await made_by(client, FIRST, **headers)
        await rank0.stop()


async def test_clients_tell_rank_0_nothing_of_what_was_kept() -> None:
    rank0 = Rank0()
    async with opened() as door, client_of(door) as client:
        door.leader_changed(await rank0.start())
        answer = await client.post(PATH, json=FIRST, headers={KEPT_HEADER: "9"})
        assert answer.status_code == 200
        await rank0.stop()
