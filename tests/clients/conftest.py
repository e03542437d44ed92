"""Clients of others against real ranks.  They live in an environment of their own, .venv-clients."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pipeline.demo_model import ensure_demo_model
from tests.cluster.harness import ROOT, Cluster, Spec

HERE = Path(__file__).parent
ENVIRONMENT = ROOT / ".venv-clients"
INSTALL_DEADLINE = 1200.0
CLIENT_DEADLINE = 1200.0
MODEL = "demo"
CONTEXT = 1536  # bounds an answer that nothing else does: the demo model may go on for ever

Run = Callable[..., subprocess.CompletedProcess[str]]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.clients)


@pytest.fixture(scope="session")
def programs() -> Path:
    """The folder with the clients' programs, installed if they are not, or not those that are wanted."""
    wanted = HERE / "requirements.txt"
    digest = hashlib.sha256(wanted.read_bytes()).hexdigest()
    stamp = ENVIRONMENT / "requirements.sha256"
    if not stamp.exists() or stamp.read_text() != digest:
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(ENVIRONMENT)], check=True)
        python = ENVIRONMENT / "bin" / "python"
        install = [str(python), "-m", "pip", "install", "--quiet", "-r", str(wanted)]
        subprocess.run(install, check=True, timeout=INSTALL_DEADLINE)
        stamp.write_text(digest)
    return ENVIRONMENT / "bin"


@pytest.fixture(scope="session")
def likeliest_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo model, which recommends to take the likeliest token: clients that don't ask for anything else
    get the same answer each time."""
    folder = tmp_path_factory.mktemp("model") / MODEL
    shutil.copytree(ensure_demo_model(), folder, copy_function=_link)
    config = folder / "generation_config.json"
    config.unlink(missing_ok=True)
    config.write_text(json.dumps({"temperature": 0.0}))
    return folder


def _link(source: str, target: str) -> None:
    """The same file where that is possible: it is half a gigabyte."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


@pytest.fixture(scope="session")
def cluster(likeliest_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    entry = {"source": str(likeliest_model), "max_model_len": CONTEXT}
    other = {"source": "org/other", "max_model_len": 4096}
    models = {"default_model": MODEL, "models": {MODEL: entry, "other": other}}
    running = Cluster(Spec(ranks=2, models=models), tmp_path_factory.mktemp("clients"))
    running.start().wait_ready()
    yield running
    try:
        running.stop()
    finally:
        running.kill()


@pytest.fixture(scope="session")
def run(programs: Path) -> Run:
    """Run one of the clients' programs to its end; fails with all that it printed."""

    def call(*words: str, ok: tuple[int, ...] = (0,)) -> subprocess.CompletedProcess[str]:
        command = [str(programs / words[0]), *words[1:]]
        done = subprocess.run(command, capture_output=True, text=True, timeout=CLIENT_DEADLINE)
        assert done.returncode in ok, f"{done.stdout}\n{done.stderr}"
        return done

    return call


@pytest.fixture(scope="session")
def script(run: Run, cluster: Cluster) -> Callable[[str], subprocess.CompletedProcess[str]]:
    """Run a script of this folder's `scripts` with the address and the model."""

    def call(name: str) -> subprocess.CompletedProcess[str]:
        return run("python", str(HERE / "scripts" / name), f"{cluster.url}/v1", MODEL)

    return call


@pytest.fixture(scope="session")
def node_modules(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the npm package `openai` in it."""
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("npm is missing")
    folder = tmp_path_factory.mktemp("npm")
    (folder / "package.json").write_text('{"private": true, "type": "module"}')
    install = [npm, "install", "--silent", "openai@7"]
    subprocess.run(install, cwd=folder, check=True, timeout=INSTALL_DEADLINE)
    return folder
