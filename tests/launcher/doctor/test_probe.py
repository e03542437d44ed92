"""The probe on this machine, as a program and part by part."""

from __future__ import annotations

import os
import platform
import socket
import threading
from datetime import datetime, timezone
from pathlib import Path
from typing import Any
from unittest.mock import ANY

import msgspec
import pytest

from config import load
from launcher.doctor import probe, report
from launcher.doctor.__main__ import main
from launcher.doctor.checks import Status, judge
from launcher.doctor.facts import Asked, LinkFacts, NodeFacts
from launcher.doctor.question import Place, Question
from launcher.doctor.survey import ask, pairs, ports, resources
from launcher.hostfile import LOCAL
from server.tls.folder import Folder
from server.tls.identity import Identity, Kind
from tests.launcher.doctor.facts import FACTS, GIB, survey


def question(*hosts: str, overrides: tuple[str, ...] = ()) -> Question:
    config = load(None, {}, overrides).config
    nodes = config.nodes_of(len(hosts))
    places = tuple(
        Place(n, host, (f"10.0.0.{i}",))
        for i, (n, host) in enumerate(zip(nodes, hosts, strict=True))
    )
    return Question(config, places, 32000, overrides=overrides)


def facts_of(asked: Asked) -> NodeFacts:
    assert asked.facts, asked.problem
    return asked.facts


def test_a_probe_that_was_sent_sees_what_this_process_sees() -> None:
    """It runs as on another host: as a program on standard input of an interpreter."""
    facts = facts_of(ask(question(LOCAL), 0))
    assert facts.python == platform.python_version()
    assert facts.code == probe._code_digest(Path.cwd())
    assert facts.settings.keys() >= {"cluster", "nodes", "models"}
    assert facts.memory is not None


def test_settings_come_from_the_same_arguments() -> None:
    usual = facts_of(ask(question(LOCAL), 0))
    changed = facts_of(ask(question(LOCAL, overrides=("scheduler.max_batch_size=3",)), 0))
    assert {s for s in usual.settings if usual.settings[s] != changed.settings[s]} == {"scheduler"}


def test_a_place_without_the_checkout_is_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("launcher.doctor.question.environment", lambda: (str(tmp_path / "no"), "x"))
    assert "there is no folder" in ask(question(LOCAL), 0).problem
    monkeypatch.setattr(
        "launcher.doctor.question.environment", lambda: (str(tmp_path), "/no/python")
    )
    asked = ask(question(LOCAL), 0)
    assert "there is no" in asked.problem
    assert "make a checkout" in asked.advice


def test_a_taken_port_is_found_with_its_user() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        number = server.getsockname()[1]
        found = probe._port("here", number)
    assert found["error"] == "Address already in use"
    assert found["user"].startswith(f"{os.getpid()} (")
    assert probe._port("here", number) == {"use": "here", "number": number}


def test_loopback_is_known_as_such() -> None:
    found = probe.interface("127.0.0.1")
    assert (found["kind"], found["up"]) == ("loopback", True)
    assert probe.interface("192.0.2.7") == {"address": "192.0.2.7"}  # for documentation: nobody's


def test_files_are_looked_at_as_the_server_would(tmp_path: Path) -> None:
    key = tmp_path / "key"
    assert probe._file("tls.key", key)["error"] == "No such file or directory"
    key.touch(mode=0o600)
    assert probe._file("tls.key", key)["open_to_others"] is False
    key.chmod(0o640)
    assert probe._file("tls.key", key)["open_to_others"] is True


def test_certificates_are_checked_as_a_rank_checks_them(tmp_path: Path) -> None:
    tls = load(None, {}, ("tls.cluster.enabled=true", f"tls.cluster.folder={tmp_path}")).config.tls
    [found] = [probe._certificates(tls, "mini1")]
    assert found
    assert f"{tmp_path}/mini1.pem: can't be read" in found["error"]
    assert probe._certificates(load(None, {}).config.tls, "mini1") is None
    folder = Folder(tmp_path, datetime.now(timezone.utc))
    folder.init("cluster")
    folder.add(Identity(Kind.NODE, "mini1"), days=400)
    assert probe._certificates(tls, "mini1") == {"error": "", "ends": ANY, "soon": False}
    assert "mini2.pem" in (probe._certificates(tls, "mini2") or {})["error"]


def test_of_a_model_counts_what_is_there(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    asked = {"kind": "folder", "source": str(folder), "cache": ""}
    assert (probe._disk(asked)["found"], probe._disk(asked)["held"]) == (False, 0)
    folder.mkdir()
    (folder / "a.safetensors").write_bytes(b"1234")
    (folder / "b.safetensors").symlink_to(tmp_path / "missing")
    assert (probe._disk(asked)["found"], probe._disk(asked)["held"]) == (True, 4)


def test_both_ends_of_a_link_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "TRANSFER_LIMIT", 8 * probe.BLOCK)
    said: list[dict[str, Any]] = []
    answering = probe.answer_link("127.0.0.1", free_port())
    said.append(next(answering))
    thread = threading.Thread(target=lambda: said.extend(answering))
    thread.start()
    measured = probe.measure_link("127.0.0.1", said[0]["listening"])
    thread.join()
    link = msgspec.convert(measured, LinkFacts)
    assert link.interface.kind == "loopback"
    assert link.seconds > 0
    assert link.bytes_per_second > 0
    assert 0 < said[1]["received"] <= 8 * probe.BLOCK


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def test_each_port_is_asked_for_where_it_will_be_needed() -> None:
    asked = question("a", "b", LOCAL, LOCAL)
    wanted = [{number for _, number in ports(asked, rank)} for rank in range(4)]
    assert wanted[0] == {8100, 8101, 8102, 32000, 8400, 8000}
    assert wanted[1] == {8200, 8201, 8202, 32001, 8400}
    assert wanted[3] == {*asked.places[3].node.ports, 32003}  # rank 2 has asked for the machine's


def test_links_are_those_of_the_ring_between_hosts() -> None:
    assert pairs(question("a", "b", "c")) == [(0, 1), (1, 2), (2, 0)]
    assert pairs(question("a", "a", "b")) == [(1, 2), (2, 0)]
    assert pairs(question("a")) == []


def test_ranks_of_one_machine_share_its_memory() -> None:
    node = question("a").places[0].node
    assert resources(node, FACTS, 2) == f"mini1:{6 * GIB}:1.0"
    assert resources(node, None, 1) == "mini1::1.0"


# the command


def test_a_report_says_what_to_mend_below_what_is_wrong() -> None:
    text = report.text(judge(survey(code="other")))
    lines = text.splitlines()
    wrong = next(i for i, line in enumerate(lines) if line.startswith("  FAIL"))
    assert lines[wrong + 1].strip() == "-> check out the same commit on both"
    assert lines[-1].startswith("1 to mend, 0 doubtful, ")
    assert report.text(judge(survey())).endswith("All is well.")


def test_json_is_for_programs() -> None:
    content = msgspec.json.decode(report.as_json(judge(survey(code="other"))))
    assert content["ok"] is False
    [check] = [c for c in content["checks"] if c["status"] != Status.OK.value]
    assert (check["place"], check["name"], check["status"]) == ("mini2", "code", "fail")


def test_a_wrong_hostfile_is_told_in_a_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--hostfile", str(tmp_path / "no.json")]) == 2
    assert "no.json: can't be read" in capsys.readouterr().err
