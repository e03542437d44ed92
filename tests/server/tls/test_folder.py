"""scripts/certs: what it makes, and what it refuses."""

from __future__ import annotations

import io
import os
import stat
import tarfile
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path

import pytest
from cryptography import x509

from server.tls.__main__ import EXIT_SOON, main
from server.tls.authority import new_ca
from server.tls.folder import Folder
from server.tls.identity import Identity, Kind, identity_in

Certs = Callable[..., int]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "tls"


@pytest.fixture
def certs(folder: Path) -> Certs:
    return lambda *words: main(["--folder", str(folder), *map(str, words)])


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_everything_is_made_once_and_keys_are_their_owners(folder: Path, certs: Certs) -> None:
    os.umask(0o022)
    assert certs("init") == 0
    assert certs("node", "n0", "n1", "--address", "mini.local", "--address", "10.0.0.1") == 0
    for command in (["gateway"], ["launcher"], ["client", "reader"]):
        assert certs(*command) == 0
    names = {"ca", "n0", "n1", "gateway", "launcher", "reader"}
    assert {path.name for path in folder.iterdir()} == {
        f"{name}.{end}" for name in names for end in ("pem", "key")
    }
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in folder.iterdir())
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_nothing_is_overwritten(
    folder: Path, certs: Certs, capsys: pytest.CaptureFixture[str]
) -> None:
    certs("init")
    certs("node", "n0")
    (folder / "n1.key").write_text("precious")
    before = contents(folder)
    for command in (["init"], ["node", "n0"], ["node", "n1"], ["client", "n0"]):
        assert certs(*command) == 1
        assert "is there already" in capsys.readouterr().err
    assert contents(folder) == before


@pytest.mark.parametrize("name", ["ca", "gateway", "launcher", "a..b", "x" * 64, "../n0"])
def test_names_that_are_no_names_of_nodes(folder: Path, certs: Certs, name: str) -> None:
    certs("init")
    before = contents(folder)
    assert certs("node", name) == 1
    assert contents(folder) == before


def test_a_certificate_that_names_addresses_is_nobodys_but_its_holders(
    folder: Path, certs: Certs, capsys: pytest.CaptureFixture[str]
) -> None:
    certs("init")
    assert certs("gateway", "--address", "n0.node.mlx-cluster.internal") == 1
    assert "are for identities" in capsys.readouterr().err
    both = ["n0.node.mlx-cluster.internal", "n1.node.mlx-cluster.internal"]
    assert identity_in(both[:1]) == Identity(Kind.NODE, "n0")
    assert identity_in(both) is None
    assert identity_in(["n0", "node.mlx-cluster.internal", "n0.ca.mlx-cluster.internal"]) is None


def test_without_a_ca_nothing_is_signed(
    folder: Path, certs: Certs, capsys: pytest.CaptureFixture[str]
) -> None:
    assert certs("node", "n0") == 1
    assert "`scripts/certs init` makes one" in capsys.readouterr().err
    assert not folder.exists()


def test_show_says_when_and_its_status_that_it_is_soon(
    certs: Certs, capsys: pytest.CaptureFixture[str]
) -> None:
    certs("init")
    certs("node", "n0")
    assert certs("show") == 0
    certs("node", "n1", "--days", 20)
    assert certs("show", "--soon", 10) == 0
    capsys.readouterr()
    assert certs("show") == EXIT_SOON
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["ca.pem", "n0.pem", "n1.pem"]
    assert [line.endswith("!") for line in lines] == [False, False, True]


def test_renew_replaces_what_expires_soon_and_keeps_what_it_names(
    folder: Path, certs: Certs
) -> None:
    certs("init")
    certs("node", "n0", "--days", 20, "--address", "10.0.0.1", "--address", "mini.local")
    certs("node", "n1")
    before = contents(folder)
    assert certs("renew") == 0
    after = contents(folder)
    changed = {name for name, content in after.items() if content != before[name]}
    assert changed == {"n0.pem", "n0.key"}
    entry = Folder(folder, datetime.now(timezone.utc)).entry("n0")
    assert entry.holder == Identity(Kind.NODE, "n0")
    assert entry.addresses == ["mini.local", "10.0.0.1"]
    assert certs("show") == 0
    assert certs("renew", "n1") == 0
    assert certs("renew", "ca") == 1


def test_a_bundle_holds_what_one_machine_needs(folder: Path, certs: Certs, tmp_path: Path) -> None:
    certs("init")
    certs("node", "n0", "n1")
    target = tmp_path / "n0.tar"
    assert certs("bundle", "n0", "--output", target) == 0
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    with tarfile.open(fileobj=io.BytesIO(target.read_bytes())) as archive:
        assert archive.getnames() == ["ca.pem", "n0.pem", "n0.key"]
        assert all(member.mode == 0o600 for member in archive)
    assert certs("bundle", "n0", "--output", target) == 1
    assert certs("bundle", "ca", "--output", tmp_path / "ca.tar") == 1


def test_a_certificate_ends_with_its_ca(folder: Path, certs: Certs) -> None:
    now = datetime.now(timezone.utc)
    ca = new_ca("test", now, days=100)
    folder.mkdir(mode=0o700)
    (folder / "ca.pem").write_bytes(ca.certificate)
    (folder / "ca.key").write_bytes(ca.key)
    (folder / "ca.key").chmod(0o600)
    certs("node", "n0")
    ends = [
        x509.load_pem_x509_certificate((folder / name).read_bytes()).not_valid_after_utc
        for name in ("ca.pem", "n0.pem")
    ]
    assert ends[0] == ends[1]
