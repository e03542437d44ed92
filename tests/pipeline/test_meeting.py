"""The conclusions that ranks draw from their cards: who can't take part, who differs, who is where."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from config import Config, load
from pipeline.card import Card, make_card
from pipeline.errors import ModelError
from pipeline.meeting import Meeting, MeetingFailed, agree, meet, place_layers
from pipeline.plan import LayerRange, ModelCosts

Change = Callable[[dict[str, Any]], None]


class Table:
    """Stands for the ring of one rank: hands out what the others show, one round after the other."""

    def __init__(self, *rounds: list[dict[str, Any]], rank: int = 0) -> None:
        self.rank, self.size, self._rounds = rank, len(rounds[0]), list(rounds)

    def exchange(self, card: dict[str, Any]) -> list[dict[str, Any]]:
        shown = self._rounds.pop(0)
        shown[self.rank] = card
        return json.loads(json.dumps(shown))


def configured(*overrides: str) -> Config:
    return load(None, {}, overrides).config


def cards(config: Config, size: int, **changes: object) -> list[Card]:
    """Of ranks on machines of their own."""
    made = [make_card(config, node, 10**9, "f") for node in config.nodes_of(size)]
    return [
        msgspec.structs.replace(card, **{"machine": f"machine {rank}", **changes})
        for rank, card in enumerate(made)
    ]


def sit(config: Config, shown: list[Card], change: Change | None = None, rank: int = 0) -> Meeting:
    """As `rank`.  `change`: what the last rank shows otherwise; the others are at host0, host1, ..."""
    plain = [msgspec.to_builtins(card) for card in shown]
    if change is not None:
        change(plain[-1])
    hosts = [{"host": f"host{other}"} for other in range(len(shown))]
    table = Table(plain, hosts, rank=rank)
    return meet(table, config, shown[rank])  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def _no_hostfile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLX_HOSTFILE", raising=False)


def fails(config: Config, shown: list[Card], change: Change) -> str:
    with pytest.raises(MeetingFailed) as failure:
        sit(config, shown, change)
    return str(failure.value)


def test_sections_and_nodes_that_are_configured_differently_are_named() -> None:
    config = configured()
    other = configured("network.step_timeout=7", "coordinator.port=8500")
    shown = cards(config, 3)
    shown[2] = make_card(other, other.nodes_of(3)[2], 10**9, "f")
    assert fails(config, shown, lambda _: None) == (
        "mini1 and master are configured differently in coordinator (config/cluster.yaml), "
        "network (config/network.yaml); give all nodes the same files."
    )


@pytest.mark.parametrize("package", ["mlx-cluster", "mlx-lm", "mlx"])
def test_another_version_is_named_whatever_else_its_card_has(package: str) -> None:
    """Also before an error that may come from it."""

    def older(card: dict[str, Any]) -> None:
        card["versions"][package] = "0.0.9"
        card["a field of another version"] = 1
        card["error"] = "this mlx-lm does not know the architecture"
        del card["machine"]

    config = configured()
    mine = cards(config, 2)[0].versions[package]
    assert fails(config, cards(config, 2), older) == (
        f"the nodes differ in {package}: mini1 has {mine}, mini2 0.0.9; "
        "install the same version on all nodes."
    )


def test_another_protocol_is_named() -> None:
    def older(card: dict[str, Any]) -> None:
        card["protocol"] = 1
        card["a field of another protocol"] = 1

    message = fails(configured(), cards(configured(), 2), older)
    assert message.startswith("the nodes differ in protocol: mini1 has version ")
    assert "mini2 version 1;" in message


@pytest.mark.parametrize(
    "change",
    [
        lambda card: card.update(memory_bytes="much"),
        lambda card: card.update(unheard_of=1),
        lambda card: card.pop("node"),
    ],
)
def test_a_card_that_cannot_be_read_fails_by_rank(change: Change) -> None:
    message = fails(configured(), cards(configured(), 2), change)
    assert message.startswith("the card of rank 1 can't be read (")


def test_other_model_files_are_named() -> None:
    message = fails(
        configured(), cards(configured(), 2), lambda card: card.update(fingerprint="other")
    )
    assert message == "the nodes differ in model files (fingerprint): mini1 has f, mini2 other."


def test_one_that_cannot_take_part_is_named_and_a_reason_of_all_is_not() -> None:
    config = configured()
    assert (
        fails(config, cards(config, 2), lambda c: c.update(error="no disk.")) == "mini2: no disk."
    )
    with pytest.raises(ModelError, match=r"^no model\.$"):
        sit(config, cards(config, 2, error="no model."))
    meeting = sit(config, cards(config, 2))
    with pytest.raises(MeetingFailed, match=r"^mini2: port taken$"):
        agree(Table([{}, {"error": "port taken"}]), meeting, "")  # type: ignore[arg-type]


def test_ranks_that_share_a_machine_share_its_memory() -> None:
    config = configured()
    apart = sit(config, cards(config, 3))
    assert [apart.memory_bytes(rank) for rank in range(3)] == [10**9] * 3
    together = sit(config, cards(config, 3, machine="one"))
    assert [together.memory_bytes(rank) for rank in range(3)] == [10**9 // 3] * 3


@pytest.mark.parametrize(
    ("override", "end"), [("cluster.prefill_share=0", 19), ("cluster.prefill_share=1.0", 15)]
)
def test_stages_are_balanced_for_the_configured_share_of_prefill(override: str, end: int) -> None:
    config = configured(override)
    made = place_layers(
        config, sit(config, cards(config, 2)), ModelCosts((100,) * 30, last_bytes=800)
    )
    assert made.ranges == (LayerRange(0, end), LayerRange(end, 30))


def test_the_hostfile_of_the_ring_says_where_ranks_are(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    path = tmp_path / "hosts"
    path.write_text(json.dumps([["10.0.0.1:5000"], ["10.0.0.2:5000"]]))
    monkeypatch.setenv("MLX_HOSTFILE", str(path))
    assert sit(configured(), cards(configured(), 2)).hosts == ("10.0.0.1", "10.0.0.2")


def test_without_a_hostfile_ranks_of_one_machine_are_on_the_loopback() -> None:
    config = configured()
    assert sit(config, cards(config, 2, machine="one")).hosts == ("127.0.0.1", "127.0.0.1")


def test_a_rank_that_is_alone_listens_where_its_launcher_looks_for_it() -> None:
    """MLX gives it an empty hostfile."""
    at = "nodes.mini1.host=10.0.0.1"
    config = configured(at)
    assert sit(config, cards(config, 1)).hosts == ("127.0.0.1",)
    config = configured(at, "launcher.supervised=true")
    assert sit(config, cards(config, 1)).hosts == ("10.0.0.1",)


def test_without_a_hostfile_each_rank_says_where_it_is() -> None:
    config = configured()
    assert sit(config, cards(config, 3), rank=0).hosts == ("mini1.local", "host1", "host2")
    assert sit(config, cards(config, 3), rank=2).hosts == ("host0", "host1", "master.local")


@pytest.mark.parametrize(
    "overrides",
    [
        ("nodes={}", "coordinator.host=127.0.0.1"),
        ("nodes.mini2.host=localhost", "coordinator.host=127.0.0.1"),
        ("nodes.mini2.host=localhost", "nodes.mini1.host=127.0.1.9"),
    ],
)
def test_a_rank_without_a_host_is_at_its_address_towards_the_coordinator(
    overrides: tuple[str, ...],
) -> None:
    config = configured(*overrides)
    found, own = sit(config, cards(config, 2), rank=1).hosts
    assert found == "host0"
    assert own.startswith("127.0.")  # as the test machine reaches its own loopback


@pytest.mark.parametrize(
    "overrides",
    [("nodes={}",), ("nodes={}", "coordinator.host=0.0.0.0"), ("nodes.mini1.host=127.0.0.1",)],
)
def test_a_rank_that_nobody_can_find_is_named(overrides: tuple[str, ...]) -> None:
    config = configured(*overrides)
    name = config.nodes_of(1)[0].name
    message = fails(config, cards(config, 2), lambda _: None)
    assert message.startswith(f"{name} runs on another machine, and nothing says how to reach it:")


def test_a_coordinator_of_unknown_name_shows_no_way() -> None:
    config = configured("nodes={}", "coordinator.host=no-such-host.invalid")
    assert "nothing says how to reach it" in fails(config, cards(config, 2), lambda _: None)
