"""scripts/serve: what it makes of its arguments, in a checkout whose interpreter only shows its own."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# Shows the folder it runs in and its arguments, one a line, when it is to run the server.
FAKE_PYTHON = """#!/bin/sh
case "$*" in
    "-m launcher "* | "-m server"*) pwd; printf '%s\\n' "$@" ;;
    "-m pip "*) printf '%s\\n' "$*" >&2 ;;
esac
"""

PLACE_OPTIONS = ("--hostfile", "--ranks", "--backend", "--starting-port", "--grace")


@dataclass(frozen=True)
class Checkout:
    """A copy of the scripts, and an empty folder for the user to be in."""

    root: Path
    here: Path

    def serve(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        clean = {key: value for key, value in os.environ.items() if not key.startswith("MLXC_")}
        return subprocess.run(
            [self.root / "scripts/serve", *arguments],
            cwd=self.here,
            env={**clean, "PWD": str(self.here), **environment},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def arguments(self, *arguments: str, **environment: str) -> tuple[list[str], list[str]]:
        """What the launcher gets of where to run, which comes first, and the server's arguments."""
        done = self.serve(*arguments, **environment)
        assert done.returncode == 0, done.stderr
        folder, *words = done.stdout.splitlines()
        assert folder == str(self.root)
        assert words[:2] == ["-m", "launcher"]
        first = 2  # of the server's
        while words[first : first + 1] and words[first] in PLACE_OPTIONS:
            first += 2
        return words[2:first], words[first:]


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    root, here = (tmp_path / "check out").resolve(), (tmp_path / "user's folder").resolve()
    here.mkdir()
    (root / "scripts").mkdir(parents=True)
    for name in ("serve", "env.sh"):
        shutil.copy(ROOT / "scripts" / name, root / "scripts")
    for name in ("pyproject.toml", "hostfile.json"):
        shutil.copy(ROOT / name, root)
    python = root / ".venv/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text(FAKE_PYTHON)
    python.chmod(0o755)
    (root / ".venv/.accelerator").touch()
    (root / ".venv/.complete").write_text(f"{root}/.venv\n")
    return Checkout(root, here)


def test_by_default_the_shipped_hostfile_is_used(checkout: Checkout) -> None:
    assert checkout.arguments() == (["--hostfile", str(checkout.root / "hostfile.json")], [])


@pytest.mark.parametrize("form", ["{} {}", "{}={}"])
@pytest.mark.parametrize("option", ["--config", "--model"])
def test_folders_are_those_of_the_user(checkout: Checkout, option: str, form: str) -> None:
    (checkout.here / "some").mkdir()
    (checkout.root / "some").mkdir()
    _, server = checkout.arguments(*form.format(option, "./some").split())
    assert server == [option, str(checkout.here / "some")]


@pytest.mark.parametrize("form", ["{} {}", "{}={}"])
def test_the_hostfile_is_that_of_the_user(checkout: Checkout, form: str) -> None:
    launcher, _ = checkout.arguments(*form.format("--hostfile", "hostfile.json").split())
    assert launcher == ["--hostfile", str(checkout.here / "hostfile.json")]
    launcher, _ = checkout.arguments(MLXC_HOSTFILE="hosts/mine.json")
    assert launcher == ["--hostfile", str(checkout.here / "hosts/mine.json")]


@pytest.mark.parametrize(
    ("model", "passed"),
    [
        ("smollm2-135m", "smollm2-135m"),  # a name, though there is a folder of that name
        ("owner/name", "owner/name"),
        ("owner/here", "{here}/owner/here"),
        ("./missing", "{here}/missing"),
        ("../user's folder/owner", "{here}/owner"),
        (".", "{here}"),
        ("a/b/missing", "{here}/a/b/missing"),
        ("/a/model", "/a/model"),
        ("~/a/model", "~/a/model"),
    ],
)
def test_a_model_is_a_name_a_hub_id_or_a_folder_here(
    checkout: Checkout, model: str, passed: str
) -> None:
    (checkout.here / "smollm2-135m").mkdir()
    (checkout.here / "owner/here").mkdir(parents=True)
    _, server = checkout.arguments("--model", model)
    assert server == ["--model", passed.format(here=checkout.here)]


def test_other_arguments_reach_the_server_unchanged(checkout: Checkout) -> None:
    given = ["--port", "9000", "--set", "a b=c  d", "", "--set=model=./x"]
    launcher, server = checkout.arguments(
        "--ranks", "2", *given, "--starting-port=40000", "--grace", "5"
    )
    assert launcher == ["--starting-port", "40000", "--grace", "5", "--ranks", "2"]
    assert server == given


def test_print_config_starts_no_rank(checkout: Checkout) -> None:
    done = checkout.serve("--print-config", "--config", "mine")
    words = done.stdout.splitlines()[1:]
    assert words == ["-m", "server", "--print-config", "--config", str(checkout.here / "mine")]


@pytest.mark.parametrize("backend", ["ring", "mpi"])
def test_mpi_is_installed_where_it_is_asked_for(checkout: Checkout, backend: str) -> None:
    hostfile = checkout.here / "hosts.json"
    hostfile.write_text(f'{{"backend" : "{backend}", "hosts": []}}')
    for arguments in (["--backend", backend], ["--hostfile", "hosts.json"]):
        (checkout.root / ".venv/.installed").unlink(missing_ok=True)
        asked_pip = checkout.serve(*arguments).stderr
        assert ("[mpi]" in asked_pip) is (backend == "mpi")
    # The command line wins over the hostfile.
    launcher, _ = checkout.arguments("--hostfile", "hosts.json", "--backend", "ring")
    assert launcher[2:] == ["--backend", "ring"]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--backend", "nccl"], "--backend must be ring or mpi, not nccl"),
        (["--hostfile", "a", "--ranks", "2"], "--hostfile and --ranks exclude each other"),
        (["--model"], "--model needs a value"),
        (["--config="], "--config needs a value"),
        (["--starting-port"], "--starting-port needs a value"),
    ],
)
def test_bad_arguments_are_told_before_anything_is_made(
    checkout: Checkout, arguments: list[str], complaint: str
) -> None:
    shutil.rmtree(checkout.root / ".venv")
    done = checkout.serve(*arguments)
    assert (done.returncode, done.stderr) == (1, f"error: {complaint}\n")
    assert not (checkout.root / ".venv").exists()
