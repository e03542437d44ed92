"""What is served to whom, by the configuration and the addresses that are listened on."""

from __future__ import annotations

import ipaddress
from pathlib import Path

import pytest

from config import Config, ConfigError, load
from server.access.errors import AccessError
from server.access.startup import open_access, protect, protect_front_door
from tests.server.access.helpers import add_key, jwt_config

LOOPBACK, OFFICE = ["127.0.0.1", "::1", "localhost"], ["127.0.0.1", "192.168.1.11"]


def config(folder: Path, *settings: str) -> Config:
    files = [
        f"access.keys_file={folder / 'keys.json'}",
        f"access.cluster_secret_file={folder / 'secret'}",
    ]
    return load(None, {}, [*files, *settings]).config


def test_loopback_is_open_until_there_is_a_key(tmp_path: Path) -> None:
    access = open_access(config(tmp_path).access, LOOPBACK)
    assert access.policy.open
    assert "open to every user of this machine" in access.notice
    add_key(tmp_path / "keys.json")
    assert not access.policy.open


@pytest.mark.parametrize("host", ["192.168.1.11", "0.0.0.0", "::", "mini1.local"])
def test_other_addresses_are_not_served_without_keys(tmp_path: Path, host: str) -> None:
    with pytest.raises(AccessError, match=rf"Others can reach {host}, .*server\.keys create"):
        protect(config(tmp_path), ["127.0.0.1", host])


def test_unless_somebody_says_so(tmp_path: Path) -> None:
    protection = protect(config(tmp_path, "access.enabled=false"), OFFICE)
    assert protection.guard.policy.open
    assert protection.notice == (
        "access: OPEN to anybody who reaches 192.168.1.11 (access.enabled is false)"
    )


def test_keys_close_every_address(tmp_path: Path) -> None:
    add_key(tmp_path / "keys.json")
    for hosts in (LOOPBACK, OFFICE):
        access = open_access(config(tmp_path).access, hosts)
        assert not access.policy.open
        assert "1 valid keys" in access.notice


def test_expired_keys_do_not_open_anything(tmp_path: Path) -> None:
    add_key(tmp_path / "keys.json", expires_in=-60)
    assert not open_access(config(tmp_path).access, LOOPBACK).policy.open


def test_tokens_are_enough(tmp_path: Path) -> None:
    jwt = jwt_config(tmp_path).model_dump(mode="json")
    settings = [f"access.jwt.{k}={v}" for k, v in jwt.items() if k != "algorithms"]
    settings.append("access.jwt.algorithms=[HS256, RS256, ES256]")
    access = open_access(config(tmp_path, *settings).access, OFFICE)
    assert not access.policy.open
    assert access.policy.tokens is not None


def test_true_needs_keys_on_any_address(tmp_path: Path) -> None:
    with pytest.raises(AccessError, match=r"access\.enabled is true, but .* holds no key"):
        open_access(config(tmp_path, "access.enabled=true").access, LOOPBACK)


def test_keys_without_the_secret_of_the_cluster(tmp_path: Path) -> None:
    add_key(tmp_path / "keys.json")
    with pytest.raises(AccessError, match=r"access\.cluster_secret_file = .*secret: there is no"):
        protect(config(tmp_path), OFFICE)


def test_the_front_door_asks_as_rank_0_does_and_counts_what_is_answered_there(
    tmp_path: Path,
) -> None:
    with pytest.raises(AccessError, match=r"Others can reach 0\.0\.0\.0"):
        protect_front_door(config(tmp_path, "api_gateway.host=0.0.0.0"))
    add_key(tmp_path / "keys.json")
    audit = f"access.audit.file={tmp_path / 'audit'}"
    guard, notice = protect_front_door(config(tmp_path, "api_gateway.host=0.0.0.0", audit))
    assert not guard.policy.open
    assert guard.limiter is not None
    assert (guard.only_refusals, guard.answered) == (
        True,
        frozenset(),
    )  # which the front door adds to
    assert (tmp_path / "audit.front-door").exists()
    assert "1 valid keys" in notice


def test_neighbours_and_the_launcher_are_trusted_hops(tmp_path: Path) -> None:
    settings = ["access.enabled=false", "access.front_door=192.168.1.20"]
    policy = open_access(config(tmp_path, *settings).access, OFFICE, OFFICE).policy
    for trusted in ("192.168.1.11", "127.0.0.1", "192.168.1.20"):
        assert ipaddress.ip_address(trusted) in policy.trusted
    assert ipaddress.ip_address("192.168.1.21") not in policy.trusted


@pytest.mark.parametrize(
    ("setting", "believed"),
    [
        ("launcher.supervised=false", False),
        ("launcher.supervised=true", True),
        ("access.front_door=10.0.0.9", True),
    ],
)
def test_only_where_a_launcher_is_known_is_it_believed(
    tmp_path: Path, setting: str, believed: bool
) -> None:
    assert protect(config(tmp_path, setting), LOOPBACK).guard.supervised is believed


NAMED = 'api_gateway.host_names=["LLM.test"]'


@pytest.mark.parametrize("enabled", ["auto", "false"])
def test_where_only_this_machine_is_served_its_names_are_known(
    tmp_path: Path, enabled: str
) -> None:
    settings = config(tmp_path, f"access.enabled={enabled}", NAMED)
    protection = protect(settings, LOOPBACK)
    for pages in (
        protection.guard.pages,
        protection.status.pages,
        protect_front_door(settings)[0].pages,
    ):
        assert pages.names == {"llm.test"}


def test_who_serves_an_office_may_be_called_anything(tmp_path: Path) -> None:
    assert protect(config(tmp_path, "access.enabled=false"), OFFICE).guard.pages.names is None


@pytest.mark.parametrize("name", ["", "*", "llm.test:8000", "http://llm.test"])
def test_a_name_that_is_none(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="host_names"):
        config(tmp_path, f'api_gateway.host_names=["{name}"]')
