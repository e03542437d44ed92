"""Keys in a running cluster: every port, every log, and the audit."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from server.access.cluster_secret import Signer, ensure_secret, read_secret
from server.access.rpc import key_credential
from server.rpc.client import CoordinatorClient
from server.rpc.errors import NotAllowed
from tests.cluster.harness import ANSWER_DEADLINE, HOST, Cluster, Spec, folder_model
from tests.cluster.tiny import make_folder
from tests.server.access.helpers import add_key

MARKER = "w7 w11 w7 w11"  # words of the tiny model, which also says such
SPOKEN = "zebrafish"


class Guarded(Cluster):
    """Two ranks that ask for keys."""

    def __init__(self, folder: Path) -> None:
        self.keys_file, self.audit = folder / "keys.json", folder / "audit.jsonl"
        secret = folder / "secret"
        self.user = add_key(self.keys_file, "user", name="Ann")
        self.operator = add_key(self.keys_file, "operator", name="Bob")
        ensure_secret(secret)
        self.secret = read_secret(secret)
        model = make_folder(folder / "model", "llama")
        settings = (
            f"access.keys_file={self.keys_file}",
            f"access.cluster_secret_file={secret}",
            f"access.audit.file={self.audit}",
        )
        spec = Spec(ranks=2, models=folder_model(model), settings=settings)
        super().__init__(spec, folder)
        self.http.headers["authorization"] = f"Bearer {self.operator}"

    def ask(self, port: int, key: str, text: str, **more: object) -> httpx.Response:
        headers = {"authorization": f"Bearer {key}"} if key else {}
        body = {"model": self.model, "prompt": text, "max_tokens": 5, "ignore_eos": True, **more}
        url = f"http://{HOST}:{port}/v1/completions"
        return httpx.post(url, json=body, headers=headers, timeout=ANSWER_DEADLINE)


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    folder = tmp_path_factory.mktemp("guarded")
    (folder / "model").mkdir()
    cluster = Guarded(folder)
    try:
        yield cluster.start().wait_ready()
        cluster.stop()
    finally:
        cluster.kill()


def test_every_port_asks_for_a_key(guarded: Guarded) -> None:
    """Rank 0's gateway and inference port, and the port of a rank that forwards."""
    for port in (guarded.ports.gateway, *(ports[0] for ports in guarded.ports.nodes)):
        assert guarded.ask(port, "", MARKER).status_code == 401
        assert guarded.ask(port, guarded.user[:-4] + "AAAA", MARKER).status_code == 401
        answer = guarded.ask(port, guarded.user, MARKER)
        assert answer.status_code == 200, answer.text
        url = f"http://{HOST}:{port}"
        assert httpx.get(f"{url}/metrics", timeout=ANSWER_DEADLINE).status_code == 401
        assert httpx.get(f"{url}/health", timeout=ANSWER_DEADLINE).status_code == 200
    for node in guarded.ports.nodes:  # for whoever watches the node
        health = httpx.get(f"http://{HOST}:{node[2]}/health", timeout=ANSWER_DEADLINE)
        assert health.status_code == 200


def test_the_coordinator_asks_for_a_signature_or_a_key(guarded: Guarded) -> None:
    async def status(credential: object) -> int:
        client = CoordinatorClient(
            HOST,
            guarded.ports.coordinator,
            call_timeout_s=ANSWER_DEADLINE,
            credential=credential,  # type: ignore[arg-type]
        )
        try:
            return len((await client.status()).ranks)
        finally:
            await client.close()

    for wrong in (None, key_credential("mlxc_x"), Signer(b"x" * 32).sign):
        with pytest.raises(NotAllowed):
            asyncio.run(status(wrong))
    for right in (key_credential(guarded.user), Signer(guarded.secret).sign):
        assert asyncio.run(status(right)) == 2


def test_what_is_said_is_in_no_log_and_every_request_is_in_the_audit(guarded: Guarded) -> None:
    port = guarded.ports.nodes[1][0]
    said = f"{SPOKEN} {MARKER}"
    for more in ({}, {"stream": True}, {"temperature": SPOKEN}, {"model": SPOKEN}):
        guarded.ask(port, guarded.user, said, **more)
    guarded.ask(port, f"mlxc_{SPOKEN}", said)
    entries = [json.loads(line) for line in guarded.audit.read_text().splitlines()]
    completions = [entry for entry in entries if entry["route"] == "/v1/completions"]
    last = completions[-5:]
    assert [entry["status"] for entry in last] == [200, 200, 400, 404, 401]
    assert [entry["completion_tokens"] for entry in last] == [5, 5, 0, 0, 0]
    assert {entry["name"] for entry in last} == {"Ann", "nobody"}
    assert {entry["address"] for entry in last} == {HOST}
    for written in (guarded.log, guarded.audit.read_text()):
        assert SPOKEN not in written
        assert MARKER not in written
        for key in (guarded.user, guarded.operator):
            assert key.split("_", 2)[2] not in written
        assert guarded.secret.decode() not in written


def test_another_address_is_not_served_without_keys(tmp_path: Path) -> None:
    settings = (f"access.keys_file={tmp_path / 'none.json'}", "api_gateway.host=0.0.0.0")
    (tmp_path / "model").mkdir()
    model = make_folder(tmp_path / "model", "llama")
    cluster = Cluster(Spec(ranks=1, models=folder_model(model), settings=settings), tmp_path / "c")
    assert cluster.start().wait_ended() == 1
    assert "Others can reach 0.0.0.0, and no key is asked for" in cluster.log
    assert "access.enabled to false" in cluster.log
