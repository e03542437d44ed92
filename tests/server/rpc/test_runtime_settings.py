from __future__ import annotations

import config
from server.rpc.config_store import ConfigStore
from server.rpc.runtime_settings import RuntimeSettings


def test_values_are_shown_with_origin_and_changed_all_or_none() -> None:
    seen: list[config.Settings] = []
    loaded = config.load(None, {}, ["api_gateway.port=9000"])
    backend = RuntimeSettings(loaded, seen.append)
    entries = {entry.key: entry for entry in backend.entries()}
    assert entries["api_gateway.port"].value == "9000"
    assert entries["api_gateway.port"].origin == "--set"
    assert not entries["api_gateway.port"].dynamic
    assert entries["api_gateway.timeout"].dynamic

    refused = backend.change(
        {
            "api_gateway.timeout": "30",
            "api_gateway.port": "1",
            "no.such": "2",
            "bad": "[",
        }
    )
    assert set(refused) == {"api_gateway.port", "no.such", "bad"}
    assert "can't be changed while running" in refused["api_gateway.port"]
    assert seen == []

    assert backend.change({"api_gateway.timeout": "30"}) == {}
    assert seen[0].config.api_gateway.timeout == 30.0
    assert backend.settings.origin("api_gateway.timeout") == "runtime"


def test_a_rank_that_is_behind_gets_every_change_since_the_start() -> None:
    announced: list[int] = []
    backend = RuntimeSettings(config.load(None, {}), lambda _: None)
    store = ConfigStore(backend, lambda: announced.append(1))
    store.change({"api_gateway.timeout": "30"})
    store.change({"coordinator.failure_threshold": "5"})
    assert (store.revision, announced) == (2, [1, 1])
    assert store.changes_after(2) == {}
    changes = {"api_gateway.timeout": "30", "coordinator.failure_threshold": "5"}
    assert store.changes_after(0) == store.changes_after(1) == changes
    follower = RuntimeSettings(config.load(None, {}), lambda _: None)
    follower.apply(store.changes_after(0))
    assert follower.settings.config == backend.settings.config
