"""What stands before mlx.launch's script, in real shells."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from launcher.rank_files import PREPARE, kill_script
from server.launch_files import PREFIX
from tests.launcher.processes import DEADLINE, is_running, wait_for

SHELLS = [shell for shell in ("bash", "zsh") if shutil.which(shell)]
# As mlx.launch writes it, in short.
SCRIPT = PREPARE + 'pidfile=$(mktemp); echo $$ > $pidfile; printf "%s\\n" $pidfile; exec sleep 600'

pytestmark = pytest.mark.parametrize("shell", SHELLS)


class Started:
    """A process behind the script."""

    def __init__(self, shell: str, temporary: Path) -> None:
        environment = {**os.environ, "TMPDIR": str(temporary)}
        self.process = subprocess.Popen(
            [shell, "-c", SCRIPT], env=environment, stdout=subprocess.PIPE, text=True
        )
        assert self.process.stdout is not None
        self.pidfile = self.process.stdout.readline().strip()

    def __enter__(self) -> Started:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()


@pytest.fixture
def temporary(tmp_path: Path) -> Path:
    folder = tmp_path / "temporary"
    folder.mkdir()
    return folder


def test_files_of_a_rank_that_was_killed_go_with_the_next_start(
    shell: str, temporary: Path
) -> None:
    with Started(shell, temporary) as killed:
        assert Path(killed.pidfile).read_text() == f"{killed.process.pid}\n"
    assert len(list(temporary.iterdir())) == 1
    with Started(shell, temporary) as one, Started(shell, temporary) as other:
        found = {folder.name for folder in temporary.iterdir()}
        assert found == {Path(started.pidfile).parent.name for started in (one, other)}
        assert Path(one.pidfile).parent.stat().st_mode & 0o777 == 0o700


def test_what_is_nobodys_folder_stays(shell: str, temporary: Path) -> None:
    gone = f"{PREFIX}4194305-abcdef"  # a number that no process has
    (temporary / f"{gone}-file").write_text("")
    (temporary / "mlx-cluster-4194305-abcdef").mkdir()
    elsewhere = temporary / "elsewhere"
    elsewhere.mkdir()
    (temporary / gone).symlink_to(elsewhere)
    before = set(temporary.iterdir())
    with Started(shell, temporary) as started:
        assert set(temporary.iterdir()) - before == {Path(started.pidfile).parent}
        assert before < set(temporary.iterdir())


def test_a_rank_that_is_ended_leaves_no_files(shell: str, temporary: Path) -> None:
    with Started(shell, temporary) as started:
        script = kill_script(started.pidfile)
        assert script is not None
        assert _run(shell, script) == "1\n"
        assert started.process.wait(DEADLINE) < 0
        assert not list(temporary.iterdir())
        assert _run(shell, script) == "0\n", "as mlx.launch says of one that is gone"


def test_without_room_for_a_folder_mlx_launch_makes_its_files_as_it_would(
    shell: str, temporary: Path
) -> None:
    blocked = SCRIPT.replace(f"{PREFIX}$$-XXXXXX", "none/there-XXXXXX", 1)
    assert blocked != SCRIPT
    environment = {**os.environ, "TMPDIR": str(temporary)}
    with subprocess.Popen(
        [shell, "-c", blocked], env=environment, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        pidfile = Path(process.stdout.readline().strip())
        process.kill()
    assert pidfile.parent == temporary
    assert kill_script(str(pidfile)) is None
    wait_for(lambda: not is_running(process.pid))


@pytest.mark.parametrize("pidfile", [None, "", "Welcome!", f"/tmp/{PREFIX}1-a/$(reboot)"])
def test_only_a_file_of_its_own_folder_is_used(shell: str, pidfile: str | None) -> None:
    assert kill_script(pidfile) is None


def _run(shell: str, script: str) -> str:
    done = subprocess.run(
        [shell, "-c", script], capture_output=True, text=True, timeout=DEADLINE, check=True
    )
    return done.stdout
