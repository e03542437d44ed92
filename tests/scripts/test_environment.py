"""scripts/env.sh: what is left when it is interrupted, and what it does the next time."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DEADLINE = 120.0

# Writes each call of pip into `calls`; while there is a file `hold`, pip does not finish.
FAKE_PYTHON = """#!/bin/sh
folder=$(dirname "$0")
[ "$1" = -m ] || exit 0
echo "$*" >>"$folder/calls"
while [ -e "$folder/hold" ]; do sleep 0.05; done
"""


def start(command: str, folder: Path) -> subprocess.Popen[str]:
    """`command` after env.sh, with `.venv` and `pyproject.toml` in `folder`, as its own process group."""
    prepared = "set -euo pipefail; source scripts/env.sh; root=$1 venv=$1/.venv"
    return subprocess.Popen(
        ["/bin/bash", "-c", f"{prepared}; python=$venv/bin/python; {command}", "-", str(folder)],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # Whoever runs the tests in the background ignores it, and so would all that they start.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL) and None,
    )


def finish(process: subprocess.Popen[str]) -> str:
    """Wait for its orderly end; what it said."""
    _, errors = process.communicate(timeout=DEADLINE)
    assert process.returncode == 0, errors
    return errors


def interrupt(
    process: subprocess.Popen[str], number: signal.Signals, when: Callable[[], bool]
) -> str:
    """Signal the whole group, as a terminal does, once `when` holds; what it said."""
    deadline = time.monotonic() + DEADLINE
    while not when():
        assert time.monotonic() < deadline
        assert process.poll() is None, process.communicate()
        time.sleep(0.005)
    os.killpg(process.pid, number)
    _, errors = process.communicate(timeout=DEADLINE)
    assert process.returncode == (130 if number == signal.SIGINT else -number)
    return errors


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_venv_is_made_anew(tmp_path: Path, number: signal.Signals) -> None:
    python = tmp_path / ".venv/bin/python"
    said = interrupt(start("make_venv", tmp_path), number, python.exists)
    assert len(said.splitlines()) == 1  # "making .venv with ...", and no traceback
    # As a rule pip is missing; the interpreter is there, which is what looks complete.
    assert subprocess.run([python, "-c", ""], check=False, timeout=DEADLINE).returncode == 0
    assert "making .venv" in finish(start("make_venv", tmp_path))
    subprocess.run([python, "-m", "pip", "--version"], check=True, timeout=DEADLINE)
    assert finish(start("make_venv", tmp_path)) == ""


def test_a_venv_that_was_moved_is_made_anew(tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    finish(start("make_venv", tmp_path / "old"))
    (tmp_path / "old").rename(tmp_path / "new")
    assert "making .venv" in finish(start("make_venv", tmp_path / "new"))
    pip = tmp_path / "new/.venv/bin/pip"
    subprocess.run([pip, "--version"], check=True, timeout=DEADLINE)


def test_an_activated_venv_is_not_its_own_base(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finish(start("make_venv", tmp_path))
    (tmp_path / ".venv/.complete").unlink()
    monkeypatch.setenv("PATH", f"{tmp_path}/.venv/bin:{os.environ['PATH']}")
    assert str(tmp_path / ".venv/bin") not in finish(start("make_venv", tmp_path))


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project whose interpreter only counts installations."""
    python = tmp_path / ".venv/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text(FAKE_PYTHON)
    python.chmod(0o755)
    (tmp_path / "pyproject.toml").write_text("one")
    return tmp_path


def installations(project: Path) -> int:
    calls = project / ".venv/bin/calls"
    return len(calls.read_text().splitlines()) if calls.exists() else 0


def install(project: Path, extras: str = "") -> None:
    finish(start(f"install_project {extras}", project))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_installation_is_repeated(project: Path, number: signal.Signals) -> None:
    install(project)
    hold = project / ".venv/bin/hold"
    hold.touch()
    (project / "pyproject.toml").write_text("two")
    interrupt(start("install_project", project), number, lambda: installations(project) == 2)
    hold.unlink()
    # Whatever pip has left is neither what the old file asks for nor what the new one does.
    (project / "pyproject.toml").write_text("one")
    install(project)
    assert installations(project) == 3
    install(project)
    assert installations(project) == 3


def test_every_choice_of_extras_is_installed_once(project: Path) -> None:
    for extras in ("", "test,mpi", "", "mpi", "test,mpi"):
        install(project, extras)
    assert installations(project) == 3


def test_another_pyproject_is_installed_with_all_choices(project: Path) -> None:
    install(project)
    install(project, "mpi")
    (project / "pyproject.toml").write_text("two")
    install(project, "mpi")
    install(project)
    install(project)
    assert installations(project) == 4


@pytest.mark.parametrize(
    ("system", "nvidia_smi", "chosen"),
    [
        ("Darwin", "echo 580.1", ""),
        ("Linux", "exit 127", "cpu"),
        ("Linux", "echo 580.159.03; echo 580.159.03", "cuda"),
        ("Linux", "echo 1000.1", "cuda"),
        ("Linux", "echo 575.64.03", "cpu"),
        ("Linux", "echo 'NVIDIA-SMI has failed'; exit 9", "cpu"),
        ("Linux", "echo '[N/A]'", "cpu"),
    ],
)
def test_mlx_gets_the_backend_of_this_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, system: str, nvidia_smi: str, chosen: str
) -> None:
    for name, script in (("uname", f"echo {system}"), ("nvidia-smi", nvidia_smi)):
        program = tmp_path / name
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    finish(start("choose_accelerator >$1/chosen", tmp_path))
    assert (tmp_path / "chosen").read_text().strip() == chosen


@pytest.mark.parametrize(
    ("accelerator", "extras", "installed"),
    [("cpu", "", "[cpu]"), ("cuda", "mpi", "[cuda,mpi]"), ("", "mpi", "[mpi]"), ("", "", "")],
)
def test_the_extras_have_exactly_one_backend(
    project: Path, accelerator: str, extras: str, installed: str
) -> None:
    (project / ".venv/.accelerator").write_text(accelerator)
    finish(start(f"make_venv() {{ :; }}; prepare_environment {extras}", project))
    asked_for = (project / ".venv/bin/calls").read_text().split()[-1]
    assert asked_for == f"{project}{installed}"


def test_cdpath_does_not_mislead_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "scripts").mkdir()
    monkeypatch.setenv("CDPATH", str(tmp_path))
    command = "source scripts/env.sh; printf '%s' \"$root\""
    shown = subprocess.run(
        ["/bin/bash", "-c", command],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert shown.stdout == str(ROOT)
