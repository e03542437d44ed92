"""Settings over HTTP: shown, changed all together or not at all."""

from __future__ import annotations

import pytest
from starlette.testclient import TestClient

from config import Settings, load
from server.node.app import node_app
from server.observe.config_routes import config_routes
from server.rpc.config_store import ConfigStore
from server.rpc.runtime_settings import RuntimeSettings

PATH = "/v1/cluster/config"
BATCH = "scheduler.max_batch_size"


class Configured:
    def __init__(self) -> None:
        self.told: list[Settings] = []
        backend = RuntimeSettings(load(None, {}), self.told.append)
        self.http = TestClient(node_app(config_routes(ConfigStore(backend, lambda: None))))

    def value(self, key: str) -> str:
        [entry] = self.http.get(PATH, params={"prefix": key}).json()["data"]
        assert entry["key"] == key
        return str(entry["value"])


@pytest.fixture
def configured() -> Configured:
    return Configured()


@pytest.mark.parametrize("value", [7, "7"])
def test_a_dynamic_setting_is_changed(configured: Configured, value: object) -> None:
    answer = configured.http.patch(PATH, json={BATCH: value})
    assert (answer.status_code, answer.json()["revision"]) == (200, 1)
    assert configured.value(BATCH) == "7"
    assert configured.told[-1].config.scheduler.max_batch_size == 7


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({BATCH: 7, "api_gateway.port": 1}, "api_gateway.port"),
        ({BATCH: 7, "no.such": 1}, "no.such"),
        ({BATCH: "many"}, BATCH),
        ({BATCH: [1]}, BATCH),
    ],
)
def test_what_is_refused_is_named_and_nothing_is_changed(
    configured: Configured, changes: dict[str, object], named: str
) -> None:
    answer = configured.http.patch(PATH, json=changes)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == named
    assert configured.value(BATCH) == "32"
    assert configured.told == []


@pytest.mark.parametrize("body", [b"", b"{}", b"[]", b'{"a": 1, "a": 2}', b" " * 70_000])
def test_a_body_that_is_no_object_of_settings_is_refused(
    configured: Configured, body: bytes
) -> None:
    assert configured.http.patch(PATH, content=body).status_code in (400, 413)
