"""Ranks that are started through ssh, which is a program of these tests and leads to this machine."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from launcher.hostfile import Hostfile
from launcher.job import Job, JobSpec
from launcher.mlx_launch import Commands
from launcher.remote import environment_arguments
from server.launch_files import PREFIX

RANK = str(Path(__file__).with_name("rank.py"))
REMOTE = Hostfile(("127.0.0.1", "other.test"))

# Called as `ssh OPTIONS... HOST COMMAND`; like sshd it starts with an environment of its own.
SSH = """#!/bin/bash
exec env -i PATH="$PATH" HOME="$HOME" /bin/bash -c "${@: -1}"
"""


@pytest.fixture
def ssh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    program = tmp_path / "bin" / "ssh"
    program.parent.mkdir()
    program.write_text(SSH)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    for name in [name for name in os.environ if name.startswith("MLXC_")]:
        monkeypatch.delenv(name)
    return program


@pytest.mark.ranks
@pytest.mark.usefixtures("ssh")
def test_ranks_on_other_hosts_have_the_users_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hostfile = tmp_path / "hosts.json"
    hosts = [{"ssh": host, "ips": ["127.0.0.1"]} for host in REMOTE.hosts]
    hostfile.write_text(json.dumps({"envs": ["MLXC_C=hostfile"], "hosts": hosts}))
    settings = {"MLXC_A": 'it\'s -- "$HOME" = x', "MLXC_B": "-1", "MLXC_C": "user"}
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    command = [sys.executable, "-m", "launcher.job", "--hostfile", str(hostfile)]
    done = subprocess.run(
        [*command, "--", sys.executable, RANK, "settings"],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    expected = sorted({**settings, "MLXC_C": "hostfile"}.items())
    for rank in range(2):
        assert f"rank {rank} has {expected}" in done.stdout.splitlines()


@pytest.mark.ranks
def test_a_start_removes_what_an_earlier_one_has_left_on_other_hosts(
    ssh: Path, tmp_path: Path
) -> None:
    """These ranks are none of `server`, and may leave their own."""
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    ssh.write_text(SSH.replace("env -i", f"env -i TMPDIR={temporary}"))
    hostfile = tmp_path / "hosts.json"
    hosts = [{"ssh": "other.test", "ips": ["127.0.0.1"]}] * 2
    hostfile.write_text(json.dumps({"hosts": hosts}))
    left = temporary / f"{PREFIX}4194305-abcdef"  # a number that no process has
    left.mkdir()
    lines: list[str] = []
    spec = JobSpec((sys.executable, RANK, "crash"), hostfile)
    Job(spec, lambda line, _: lines.append(line)).run()
    pids = re.findall(r"^up \d (\d+)$", "\n".join(lines), re.MULTILINE)
    assert {path.name.split("-")[3] for path in temporary.iterdir()} <= set(pids)


def test_only_settings_are_passed_on() -> None:
    environment = {"MLXC_A": "1=2", "HF_TOKEN": "secret", "PATH": "/bin", "OLD_MLXC_A": "3"}
    assert environment_arguments(REMOTE, "ring", environment) == ["--env=MLXC_A=1=2"]


def test_mpirun_is_not_told_the_values() -> None:
    assert environment_arguments(REMOTE, "mpi", {"MLXC_A": "1"}) == ["--env=MLXC_A"]


def test_local_ranks_need_nothing() -> None:
    assert environment_arguments(Hostfile(("127.0.0.1",)), "ring", {"MLXC_A": "1"}) == []


# the command by which mlx.launch ends a rank


def end_rank(command: str) -> subprocess.CompletedProcess[str]:
    """As mlx.launch calls it."""
    return Commands().run(
        command, check=True, shell=True, executable="/bin/bash", capture_output=True, text=True
    )


def test_a_host_that_refuses_is_told_and_no_more(
    ssh: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    ssh.write_text("#!/bin/sh\necho debug >&2; echo connection refused >&2; exit 255\n")
    assert end_rank("ssh other.test 'kill it'").stdout == ""
    expected = "note: other.test did not confirm the end of its rank: connection refused\n"
    assert capfd.readouterr().err == expected


def test_a_host_that_does_not_answer_is_not_waited_for(
    ssh: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("launcher.mlx_launch.REMOTE_KILL_TIMEOUT", 0.2)
    ssh.write_text("#!/bin/sh\nexec sleep 600\n")
    assert end_rank("ssh other.test 'kill it'").returncode == 255
    assert "other.test did not confirm the end of its rank: no answer" in capfd.readouterr().err


def test_a_local_rank_that_is_gone_is_not_worth_a_word(capfd: pytest.CaptureFixture[str]) -> None:
    assert end_rank("rm None").returncode == 1
    assert capfd.readouterr().err == ""


def test_other_commands_of_mlx_launch_may_fail_as_it_expects() -> None:
    with pytest.raises(subprocess.CalledProcessError):
        Commands().run(["/bin/sh", "-c", "exit 1"], check=True, capture_output=True)
