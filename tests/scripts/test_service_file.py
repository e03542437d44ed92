"""Service files: launchd's are read by plistlib, systemd's by systemd where there is one."""

from __future__ import annotations

import plistlib
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from service_file import SERVE, main

ARGUMENTS = ["--set", 'cluster.name=it\'s 100% "$HOME"', "--model", "./my model", "back\\slash"]
VARIABLE = 'MLXC_A=1 % $x "y"'


def made(capsysbinary: pytest.CaptureFixture[bytes], *options: str) -> bytes:
    assert main([*options, "--env", VARIABLE, "--", *ARGUMENTS]) == 0
    return capsysbinary.readouterr().out


def sections(unit: bytes) -> dict[str, dict[str, str]]:
    found: dict[str, dict[str, str]] = {}
    for line in unit.decode().splitlines():
        if line.startswith("["):
            found[line.strip("[]")] = {}
        elif line and not line.startswith("#"):
            key, _, value = line.partition("=")
            assert key not in found[list(found)[-1]], f"{key} stands twice"
            found[list(found)[-1]][key] = value
    return found


def words(text: str) -> list[str]:
    """As systemd takes a line apart."""
    return [word.replace("%%", "%") for word in shlex.split(text)]


@pytest.mark.parametrize("system", [False, True])
def test_a_unit_says_what_to_run_and_as_whom(
    capsysbinary: pytest.CaptureFixture[bytes], system: bool
) -> None:
    unit = sections(made(capsysbinary, "systemd", *(["--system", "--user", "llm"] * system)))
    service = unit["Service"]
    assert [w.replace("$$", "$") for w in words(service["ExecStart"])] == [str(SERVE), *ARGUMENTS]
    assert words(service["Environment"]) == [VARIABLE]
    assert service["WorkingDirectory"] == str(Path.cwd())
    assert service["KillMode"] == "mixed"  # else ranks would be stopped beside their launcher
    assert service.get("User") == ("llm" if system else None)
    assert ("After" in unit["Unit"]) is system  # a user's manager has no such target
    target = "multi-user.target" if system else "default.target"
    assert unit["Install"] == {"WantedBy": target}


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd-analyze is missing")
@pytest.mark.parametrize("system", [False, True])
def test_systemd_takes_the_unit(tmp_path: Path, system: bool) -> None:
    file = tmp_path / "mlx-cluster.service"
    options = ["--system", "--user", "root"] if system else []
    main(["systemd", *options, "--output", str(file), "--env", VARIABLE, "--", *ARGUMENTS])
    manager = "--system" if system else "--user"
    environment = {"PATH": "/usr/bin:/bin", "XDG_RUNTIME_DIR": str(tmp_path), "HOME": str(tmp_path)}
    command = ["systemd-analyze", "verify", manager, "--recursive-errors=no", str(file)]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=60, env=environment, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("system", [False, True])
def test_a_property_list_says_what_to_run_and_as_whom(
    capsysbinary: pytest.CaptureFixture[bytes], system: bool
) -> None:
    text = made(capsysbinary, "launchd", *(["--system", "--user", "llm"] * system))
    content: dict[str, Any] = plistlib.loads(text)
    assert content["ProgramArguments"] == [str(SERVE), *ARGUMENTS]
    assert content["EnvironmentVariables"]["MLXC_A"] == VARIABLE.partition("=")[2]
    assert content["WorkingDirectory"] == str(Path.cwd())
    assert content["RunAtLoad"] is True
    assert content["KeepAlive"] == {"SuccessfulExit": False}
    assert content.get("UserName") == ("llm" if system else None)
    assert content["StandardOutPath"].endswith("Library/Logs/mlx-cluster.log")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["systemd", "--user", "llm"], "--user is for --system"),
        (["systemd", "--env", "A"], "--env A: must be NAME=VALUE"),
        (["launchd", "--", "a\nb"], "line ends"),
    ],
)
def test_what_no_service_file_can_say_is_refused(
    capsys: pytest.CaptureFixture[str], arguments: list[str], says: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert says in capsys.readouterr().err
