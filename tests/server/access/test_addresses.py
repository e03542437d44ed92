"""Who a client is, whatever it writes into X-Forwarded-For."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence

import hypothesis
import pytest
from hypothesis import strategies as st

from config import ConfigError, load
from server.access.addresses import Networks, client_address, is_loopback, parse_address

PROXIES = Networks(["10.0.0.0/8", "fd00::/8"])


@pytest.mark.parametrize(
    ("peer", "forwarded", "client"),
    [
        ("203.0.113.7", [], "203.0.113.7"),
        ("203.0.113.7", ["198.51.100.1"], "203.0.113.7"),  # no proxy: what it says counts nothing
        ("10.0.0.1", [], "10.0.0.1"),
        ("10.0.0.1", ["203.0.113.7"], "203.0.113.7"),
        (
            "10.0.0.1",
            ["198.51.100.1, 203.0.113.7"],
            "203.0.113.7",
        ),  # the left one is the client's word
        ("10.0.0.1", ["198.51.100.1", "203.0.113.7, 10.0.0.2"], "203.0.113.7"),
        ("10.0.0.1", ["203.0.113.7:4711"], "203.0.113.7"),
        ("10.0.0.1", ["[2001:db8::7]:4711"], "2001:db8::7"),
        ("10.0.0.1", ["2001:db8::7"], "2001:db8::7"),
        ("::ffff:10.0.0.1", ["::ffff:203.0.113.7"], "203.0.113.7"),
        ("fd00::1", ["2001:db8::7"], "2001:db8::7"),
        ("10.0.0.1", ["10.0.0.3, 10.0.0.2"], "10.0.0.3"),
        ("10.0.0.1", ["somewhere"], None),
        ("10.0.0.1", ["203.0.113.7, "], None),
        ("10.0.0.1", ["nonsense, 203.0.113.7"], "203.0.113.7"),
    ],
)
def test_the_client_behind_proxies(peer: str, forwarded: Sequence[str], client: str | None) -> None:
    address = parse_address(f"[{peer}]")
    assert address is not None
    found = client_address(address, forwarded, PROXIES)
    assert found == (client and ipaddress.ip_address(client))


@hypothesis.settings(max_examples=300, deadline=None)
@hypothesis.given(st.text(max_size=60))
def test_no_text_is_taken_for_another_address(text: str) -> None:
    """Whatever a client writes to the left, the first hop that is no proxy is the client."""
    proxy = ipaddress.ip_address("10.0.0.1")
    found = client_address(proxy, [text, "203.0.113.7"], PROXIES)
    assert found == ipaddress.ip_address("203.0.113.7")


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "127.3.2.1", "::1", "[::1]", "localhost", "LOCALHOST."]
)
def test_loopback(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize(
    "host", ["0.0.0.0", "::", "10.0.0.1", "mini1.local", "", "127.0.0.1.evil.test"]
)
def test_not_loopback(host: str) -> None:
    assert not is_loopback(host)


@pytest.mark.parametrize("key", ["allow", "trusted_proxies"])
@pytest.mark.parametrize("value", ["10.0.0.1/8", "300.1.1.1", "office", "10.0.0.0/33"])
def test_networks_are_checked(key: str, value: str) -> None:
    with pytest.raises(
        ConfigError, match=rf"access\.{key}.*{value} is not an address or a network"
    ):
        load(None, {}, [f"access.{key}=['{value}']"])
