from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from pipeline import machine


def test_processes_on_one_machine_agree() -> None:
    command = [sys.executable, "-c", "from pipeline import machine; print(machine.machine_id())"]
    other = subprocess.run(command, capture_output=True, check=True, text=True, timeout=30)
    assert other.stdout.strip() == machine.machine_id()


@pytest.mark.skipif(sys.platform != "linux", reason="another file names the boot")
def test_machines_of_one_name_differ(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    here = machine.machine_id()
    monkeypatch.setattr(machine, "BOOT_ID", tmp_path / "boot_id")
    machine.BOOT_ID.write_text("8c4e7f2a-0000-4000-8000-000000000000\n")
    assert machine.machine_id() == "8c4e7f2a-0000-4000-8000-000000000000" != here


@pytest.mark.skipif(sys.platform != "linux", reason="another file names the boot")
@pytest.mark.parametrize(
    ("card", "expected"),
    [(0x0242AC110002, "mini.local-0242ac110002"), (0x0342AC110002 | 1 << 40, "mini.local")],
)
def test_without_a_boot_id_name_and_network_card_do(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, card: int, expected: str
) -> None:
    """A made-up number of a card differs between processes, so it is left out."""
    monkeypatch.setattr(machine, "BOOT_ID", tmp_path / "none")
    monkeypatch.setattr("platform.node", lambda: "mini.local")
    monkeypatch.setattr("uuid.getnode", lambda: card)
    assert machine.machine_id() == expected


def test_the_address_towards_this_machine_is_its_own() -> None:
    assert machine.address_towards("127.0.0.1") == "127.0.0.1"


def test_a_name_that_nobody_knows_has_no_address() -> None:
    with pytest.raises(OSError, match="ame"):
        machine.address_towards("no-such-host.invalid")
