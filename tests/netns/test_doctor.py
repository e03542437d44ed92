"""The doctor on three hosts, well ones and broken ones."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from hostlib.hosts import NAMES, Hosts
from tests.cluster.harness import ROOT, Spec, environment, folder_model, wait_until
from tests.netns.cluster import HostCluster

DEADLINE = 120.0  # seconds; it takes some 3 on two idle cores


@pytest.fixture
def cluster(hosts: Hosts, model: Path, tmp_path: Path) -> HostCluster:
    """Configuration and hostfile; nothing runs."""
    return HostCluster(Spec(models=folder_model(model)), tmp_path / "cluster", hosts)


def examine(cluster: HostCluster) -> tuple[int, dict[tuple[str, str], dict[str, Any]]]:
    """Exit status, and the checks by place and name: the gravest where there are several."""
    first = cluster.hosts.hosts[0]
    command = [sys.executable, "-m", "launcher.doctor", *cluster.place_arguments(), "--json"]
    done = subprocess.run(
        first.command(*command, "--config", str(cluster.folder / "config")),
        cwd=ROOT,
        env=environment({}),
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
    )
    assert done.stdout, done.stderr
    checks = json.loads(done.stdout)["checks"]
    gravity = ["ok", "warn", "fail"]
    checks.sort(key=lambda check: gravity.index(check["status"]))
    return done.returncode, {(check["place"], check["name"]): check for check in checks}


def test_three_good_hosts_are_well(cluster: HostCluster) -> None:
    status, checks = examine(cluster)
    links = {("mini1", "mini2"), ("mini2", "master"), ("master", "mini1")}
    assert {place for place, _ in checks} == {*NAMES, "m", *(f"{a} -> {b}" for a, b in links)}
    assert {key: check for key, check in checks.items() if check["status"] == "fail"} == {}
    assert status == 0
    for host in cluster.hosts.hosts:
        assert f"{host.address} on eth0 (ethernet" in checks[host.name, "address"]["message"]
    assert " by eth0 (ethernet" in checks["mini1 -> mini2", "link"]["message"]


def test_what_is_broken_on_a_host_is_found(cluster: HostCluster, tmp_path: Path) -> None:
    """mini2 has a port taken, other settings and another mlx-lm; master lets nobody in."""
    mini2, master = cluster.hosts["mini2"], cluster.hosts["master"]
    server = [sys.executable, "-m", "http.server", "8202"]
    taker = subprocess.Popen(
        mini2.command(*server), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    wait_until(lambda: 8202 in mini2.listening, "the port is taken")
    installed = metadata.distribution("mlx-lm").locate_file("")
    [described] = Path(str(installed)).glob("mlx_lm-*.dist-info/METADATA")
    network = cluster.folder / "config" / "network.yaml"
    with (
        mini2.sees(described, described.read_text().replace("\nVersion: ", "\nVersion: 9.")),
        mini2.sees(network, "network: {step_timeout: 61}"),
    ):
        cluster.hosts.refuse_login(master, True)
        try:
            status, checks = examine(cluster)
        finally:
            cluster.hosts.refuse_login(master, False)
            mini2.kill_processes()
            taker.wait()
    assert status == 1
    wrong = {key: check["message"] for key, check in checks.items() if check["status"] == "fail"}
    assert wrong.keys() == {
        ("mini2", "ports"),
        ("mini2", "packages"),
        ("mini2", "settings"),
        ("master", "login"),
    }
    assert (
        "port 8202 (nodes.mini2.ports): Address already in use, by process"
        in wrong["mini2", "ports"]
    )
    assert "mlx-lm 9." in wrong["mini2", "packages"]
    assert "network differ from those of mini1" in wrong["mini2", "settings"]
    assert "Permission denied (publickey)" in wrong["master", "login"]
    assert checks["mini2 -> master", "link"]["status"] == "warn"
