"""scripts/test: what it has pytest run, in a checkout whose interpreter only shows its arguments."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# Tests without ranks fail where there is a file `fail`.
FAKE_PYTHON = """#!/bin/sh
case "$*" in
    "-m pytest"*) echo "$*" ;;
esac
case "$*" in
    *"and not ranks"*) [ ! -e fail ] ;;
esac
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    root = tmp_path.resolve() / "check out"
    for folder in ("scripts", ".venv/bin", "bin"):
        (root / folder).mkdir(parents=True)
    for name in ("scripts/test", "scripts/env.sh", "pyproject.toml"):
        shutil.copy(ROOT / name, root / name)
    nobody = "#!/bin/sh\necho 1000\n"  # as for somebody who may install nothing
    for program, text in ((".venv/bin/python", FAKE_PYTHON), ("bin/id", nobody)):
        (root / program).write_text(text)
        (root / program).chmod(0o755)
    (root / ".venv/.accelerator").touch()
    (root / ".venv/.complete").write_text(f"{root}/.venv\n")
    return root


def run(checkout: Path, *arguments: str) -> tuple[int, list[str]]:
    """Exit status, and the calls of pytest."""
    done = subprocess.run(
        [checkout / "scripts/test", *arguments],
        env={**os.environ, "PATH": f"{checkout}/bin:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done.returncode, done.stdout.splitlines()


@pytest.mark.parametrize("arguments", [[], ["--soak"]])
def test_ranks_have_the_machine_to_themselves(checkout: Path, arguments: list[str]) -> None:
    status, [side_by_side, alone] = run(checkout, *arguments)
    assert status == 0
    assert "--numprocesses" in side_by_side
    assert "and not ranks and not hosts" in side_by_side
    assert "--numprocesses" not in alone
    assert "and (ranks or hosts)" in alone
    for call in (side_by_side, alone):
        assert "not chaos and not prometheus and not clients and not browser" in call
        assert ("not soak" in call) is (not arguments)


def test_a_failure_in_the_first_half_fails_the_whole_after_the_second(checkout: Path) -> None:
    (checkout / "fail").touch()
    status, calls = run(checkout)
    assert (status, len(calls)) == (1, 2)


@pytest.mark.parametrize("arguments", [["--chaos"], ["tests/launcher", "-x"], ["--clients", "-x"]])
def test_a_choice_of_tests_is_one_run(checkout: Path, arguments: list[str]) -> None:
    status, [call] = run(checkout, *arguments)
    assert status == 0
    assert "--numprocesses" not in call
    assert call.endswith(
        " ".join(word for word in arguments if word not in ("--chaos", "--clients"))
    )
