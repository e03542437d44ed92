from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from launcher.scratch import PREFIX, Scratch, remove_left

HOLD = "from launcher.scratch import Scratch; s = Scratch(); print(s.name, flush=True); input()"


def test_folders_of_a_launcher_that_was_killed_go_with_the_next_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    (tmp_path / f"{PREFIX}4194305-file").write_text("")  # a number that no process has
    (tmp_path / f"{PREFIX}4194305-link").symlink_to(tmp_path)
    (tmp_path / "other").mkdir()
    kept = set(tmp_path.iterdir())
    with subprocess.Popen(
        [sys.executable, "-c", HOLD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as launcher:
        assert launcher.stdout is not None
        folder = Path(launcher.stdout.readline().strip())
        remove_left()
        assert folder.is_dir()
        os.kill(launcher.pid, signal.SIGKILL)
    with Scratch() as own:
        remove_left()
        assert set(tmp_path.iterdir()) == kept | {Path(own)}
    assert set(tmp_path.iterdir()) == kept
