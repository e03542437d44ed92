"""Who can speak to whom, over real connections; and what is said of files that can't be used."""

from __future__ import annotations

import shutil
import socket
import ssl
from collections.abc import Callable
from pathlib import Path

import pytest

from config.tls import GatewayTlsConfig, TlsConfig
from server.observe.registry import REGISTRY
from server.tls.__main__ import main
from server.tls.contexts import launcher_tls, node_tls
from server.tls.errors import TlsError
from server.tls.gateway import GatewayTls, gateway_tls
from server.tls.identity import node
from server.tls.notice import in_the_clear
from tests.certificates import cluster_config, make_folder, shake_hands, tls_of


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("certificates") / "tls")


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(made, tmp_path / "tls"))


@pytest.fixture
def strangers(tmp_path: Path) -> Path:
    """The same names, by another CA."""
    return make_folder(tmp_path / "strangers")


def test_nodes_know_each_other_by_name(made: Path) -> None:
    one, other = tls_of(made, "n0"), tls_of(made, "n1")
    served, called = shake_hands(one.serve, lambda sock: other.call(sock, "n0"))
    assert served.version() == "TLSv1.3"
    assert one.problem(served, "n1") == ""
    assert one.problem(served, "n2") == "its certificate is of node n1, not of node n2"
    served.close()
    called.close()


def test_a_node_under_another_name_is_not_spoken_to(made: Path) -> None:
    one, other = tls_of(made, "n0"), tls_of(made, "n1")
    with pytest.raises(ssl.SSLError):
        shake_hands(one.serve, lambda sock: other.call(sock, "n1"))


def test_a_stranger_is_neither_served_nor_spoken_to(made: Path, strangers: Path) -> None:
    own, stranger = tls_of(made, "n0"), tls_of(strangers, "n1")
    with pytest.raises(ssl.SSLError, match=r"UNKNOWN_CA|unknown ca|CERTIFICATE_VERIFY"):
        shake_hands(own.serve, lambda sock: stranger.call(sock, "n0"))
    with pytest.raises(ssl.SSLError, match=r"UNKNOWN_CA|unknown ca|CERTIFICATE_VERIFY"):
        shake_hands(stranger.serve, lambda sock: own.call(sock, "n1"))


@pytest.mark.parametrize("name", [None, "gateway"])
def test_no_certificate_or_one_that_calls_nobody(made: Path, name: str | None) -> None:
    context = ssl.create_default_context(cafile=str(made / "ca.pem"))
    if name:
        context.load_cert_chain(made / f"{name}.pem", made / f"{name}.key")

    def call(sock: socket.socket) -> ssl.SSLSocket:
        return context.wrap_socket(
            sock, server_hostname=node("n0").dns_name, do_handshake_on_connect=False
        )

    with pytest.raises(ssl.SSLError, match="CERTIFICATE"):
        shake_hands(tls_of(made, "n0").serve, call)


def test_older_versions_are_refused(made: Path) -> None:
    other = tls_of(made, "n1")
    other.client.minimum_version = ssl.TLSVersion.TLSv1_2
    other.client.maximum_version = ssl.TLSVersion.TLSv1_2
    with pytest.raises(ssl.SSLError):
        shake_hands(tls_of(made, "n0").serve, lambda sock: other.call(sock, "n0"))


def test_the_launcher_is_no_node(made: Path) -> None:
    launcher = launcher_tls(cluster_config(made))
    assert launcher is not None
    own = tls_of(made, "n0")
    served, called = shake_hands(own.serve, lambda sock: launcher.call(sock, "n0"))
    assert "launcher launcher" in own.problem(served, "launcher")
    served.close()
    called.close()


def test_off_is_off() -> None:
    assert node_tls(TlsConfig(), "n0") is None
    assert launcher_tls(TlsConfig()) is None
    assert gateway_tls(TlsConfig()) is None


# files that can't be used


def swap(folder: Path) -> None:
    shutil.copy(folder / "n1.key", folder / "n0.key")


def other_name(folder: Path) -> None:
    for end in ("pem", "key"):
        shutil.copy(folder / f"n1.{end}", folder / f"n0.{end}")


def other_ca(folder: Path) -> None:
    shutil.copy(make_folder(folder / "others") / "ca.pem", folder / "ca.pem")


def expired(folder: Path) -> None:
    old = make_folder(folder / "old", days_ago=1000)
    for name in ("n0.pem", "n0.key", "ca.pem"):
        shutil.copy(old / name, folder / name)


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "no certificate": (
        lambda f: (f / "n0.pem").unlink(),
        r"tls\.cluster\.certificate = .*n0\.pem: can't be read: No such file",
    ),
    "no key": (lambda f: (f / "n0.key").unlink(), r"tls\.cluster\.key = .*n0\.key: can't be read"),
    "no CA": (lambda f: (f / "ca.pem").unlink(), r"tls\.cluster\.ca = .*ca\.pem: can't be read"),
    "junk": (lambda f: (f / "n0.pem").write_text("junk"), "is not a certificate in PEM"),
    "junk for a key": (lambda f: (f / "n0.key").write_text("junk"), "is not a key in PEM"),
    "a key for all to read": (lambda f: (f / "n0.key").chmod(0o644), "run chmod 600"),
    "another's key": (swap, r"tls\.cluster\.key = .*n0\.key: is not the key of .*n0\.pem"),
    "another's certificate": (other_name, "is of node n1, not of node n0"),
    "another CA": (other_ca, "was not signed by .*ca.pem"),
    "an old one": (expired, r"n0\.pem: expired on 20.*scripts/certs renew"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_can_not_be_used_is_told_by_setting_and_file(folder: Path, damage: str) -> None:
    break_it, sentence = DAMAGES[damage]
    tls_of(folder, "n0")
    break_it(folder)
    with pytest.raises(TlsError, match=sentence):
        tls_of(folder, "n0")


# the gateway


def gateway(folder: Path, name: str = "gateway") -> GatewayTls:
    config = GatewayTlsConfig(
        mode="files", certificate=str(folder / f"{name}.pem"), key=str(folder / f"{name}.key")
    )
    tls = gateway_tls(TlsConfig(gateway=config))
    assert tls is not None
    return tls


def serial(folder: Path, tls: GatewayTls) -> str:
    """Of the certificate that a new client is shown."""
    client = ssl.create_default_context(cafile=str(folder / "ca.pem"))
    served, called = shake_hands(
        lambda sock: tls.context.wrap_socket(sock, server_side=True, do_handshake_on_connect=False),
        lambda sock: client.wrap_socket(
            sock, server_hostname="127.0.0.1", do_handshake_on_connect=False
        ),
    )
    certificate = called.getpeercert()
    assert certificate is not None
    served.close()
    called.close()
    return str(certificate["serialNumber"])


def test_a_changed_certificate_is_served_at_once_and_a_broken_one_never(folder: Path) -> None:
    tls = gateway(folder)
    first = serial(folder, tls)
    assert not tls.reload()
    assert main(["--folder", str(folder), "renew", "gateway"]) == 0
    assert tls.reload()
    second = serial(folder, tls)
    assert second != first
    (folder / "gateway.pem").write_text("half a certific")
    assert not tls.reload()
    (folder / "gateway.pem").unlink()
    assert not tls.reload()
    assert serial(folder, tls) == second


def test_own_is_the_certificate_of_the_folder(folder: Path) -> None:
    config = cluster_config(folder, gateway={"mode": "own"})
    tls = gateway_tls(config)
    assert tls is not None
    assert serial(folder, tls)
    (folder / "gateway.key").unlink()
    with pytest.raises(TlsError, match=r"tls\.gateway\.key = .*gateway\.key: can't be read"):
        gateway_tls(config)


def test_when_certificates_end_is_a_metric_and_soon_a_warning(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = "mlxc_certificate_expires_timestamp_seconds"

    def shown(use: str) -> float | None:
        return REGISTRY.get_sample_value(name, {"use": use})

    tls, own = gateway(folder), tls_of(folder, "n0")
    assert shown("tls.gateway") == tls.expires.timestamp()
    assert shown("tls.cluster") == own.expires.timestamp()
    assert "expires soon" not in capsys.readouterr().out
    assert main(["--folder", str(folder), "renew", "gateway", "--days", "20"]) == 0
    assert tls.reload()
    assert shown("tls.gateway") == tls.expires.timestamp()
    assert "expires soon" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("tls", "gateway_host", "hosts", "clear"),
    [
        ({}, "127.0.0.1", ["127.0.0.1", "127.0.0.1"], []),
        ({}, "0.0.0.0", ["127.0.0.1"], ["requests"]),
        ({}, "10.0.0.1", ["10.0.0.1", "10.0.0.2"], ["requests", "prompts", "hidden states"]),
        ({}, "127.0.0.1", ["10.0.0.1"], ["prompts"]),
        (
            {"cluster": {"enabled": True}, "gateway": {"mode": "own"}},
            "10.0.0.1",
            ["10.0.0.1", "10.0.0.2"],
            ["hidden states"],
        ),
        (
            {"cluster": {"enabled": True}, "tensors": True},
            "127.0.0.1",
            ["10.0.0.1", "10.0.0.2"],
            [],
        ),
    ],
)
def test_what_travels_in_the_clear_is_said(
    tls: dict[str, object], gateway_host: str, hosts: list[str], clear: list[str]
) -> None:
    said = in_the_clear(TlsConfig.model_validate(tls), gateway_host, hosts)
    words = ("requests", "prompts", "hidden states")
    assert [word for word in words if word in said] == clear
    assert bool(said) == bool(clear)
