from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPTS = ["scripts/env.sh", "scripts/serve", "scripts/test", ".ci/run"]


def bash(command: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """`command` after env.sh, with the environment in `folder`, $1: the one of this test must stay."""
    source = "source scripts/env.sh; venv=$1 python=$1/bin/python"
    return subprocess.run(
        ["/bin/bash", "-c", f"set -euo pipefail; {source}; {command}", "-", str(folder)],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def fake_python(folder: Path, name: str, status: int) -> None:
    """A program that answers every question about its version with `status`."""
    path = folder / name
    path.write_text(f"#!/bin/sh\nexit {status}\n")
    path.chmod(0o755)


@pytest.mark.parametrize("script", SCRIPTS)
def test_bash_can_parse_it(script: str) -> None:
    subprocess.run(["/bin/bash", "-n", script], cwd=ROOT, check=True, timeout=60)


@pytest.mark.parametrize("script", ["scripts/serve", "scripts/test"])
def test_help_needs_no_environment(script: str, tmp_path: Path) -> None:
    shown = subprocess.run(
        [ROOT / script, "--help"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert shown.stdout.startswith(f"Usage: ./{script}")


def test_the_first_recent_python_is_taken(tmp_path: Path) -> None:
    fake_python(tmp_path, "python3.13", 1)
    fake_python(tmp_path, "python3.11", 0)
    fake_python(tmp_path, "python3", 0)
    found = bash("find_python", tmp_path, PATH=str(tmp_path) + ":/usr/bin:/bin")
    assert found.stdout.strip() == str(tmp_path / "python3.11")


def test_without_a_recent_python_it_says_what_to_install(tmp_path: Path) -> None:
    for name in ("python3.14", "python3.13", "python3.12", "python3.11", "python3.10", "python3"):
        fake_python(tmp_path, name, 1)
    venv = tmp_path / "venv"
    made = bash("make_venv", venv, PATH=str(tmp_path) + ":/usr/bin:/bin")
    assert made.returncode == 1
    assert made.stderr.startswith("error: Python 3.10 or later")


def test_no_openblas_is_no_failure(tmp_path: Path) -> None:
    (tmp_path / ".accelerator").write_text("cpu\n")
    command = "find_openblas() { :; }; install_openblas() { return 1; }"
    used = bash(f'{command}; use_openblas; echo "[${{LD_PRELOAD:-}}]"', tmp_path, LD_PRELOAD="")
    assert (used.returncode, used.stdout) == (0, "[]\n")


def test_a_second_installation_is_skipped(tmp_path: Path) -> None:
    """pip is replaced by a program that counts its calls and knows no version."""
    fake = tmp_path / "bin" / "python"
    fake.parent.mkdir()
    fake.write_text('#!/bin/sh\n[ "$1" = -c ] && echo same && exit\necho call >>"$0.calls"\n')
    fake.chmod(0o755)
    done = bash("install_project; install_project; install_project test,mpi", tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "bin" / "python.calls").read_text() == "call\ncall\n"


@pytest.mark.parametrize("option", ["--ranks", "--hostfile", "--backend"])
def test_an_option_without_its_value_is_refused(option: str) -> None:
    done = subprocess.run(
        [ROOT / "scripts/serve", option], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (1, f"error: {option} needs a value\n")
