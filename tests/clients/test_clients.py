"""The README's lines for other programs, each run as it stands there but for address and model."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.clients.conftest import CLIENT_DEADLINE, HERE, MODEL, Run
from tests.cluster.harness import Cluster

Script = Callable[[str], subprocess.CompletedProcess[str]]

PYTHON = ("openai_python.py", "anthropic_python.py", "langchain_python.py", "litellm_python.py")


@pytest.mark.parametrize("name", PYTHON)
def test_python(script: Script, name: str) -> None:
    assert script(name).stdout.rstrip().endswith("ok")


def test_npm(node_modules: Path, cluster: Cluster) -> None:
    shutil.copy(HERE / "scripts" / "openai_npm.mjs", node_modules)
    command = ["node", "openai_npm.mjs", f"{cluster.url}/v1", MODEL]
    done = subprocess.run(
        command, cwd=node_modules, capture_output=True, text=True, timeout=CLIENT_DEADLINE
    )
    assert done.stdout.rstrip().endswith("ok"), done.stdout + done.stderr


def test_llm(run: Run, cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLM_USER_PATH", str(tmp_path))
    entry = f"- model_id: mlx\n  model_name: {MODEL}\n  api_base: {cluster.url}/v1\n"
    (tmp_path / "extra-openai-models.yaml").write_text(entry)
    done = run("llm", "-m", "mlx", "--key", "none", "What is the capital of France?")
    assert "Paris" in done.stdout


def test_curl(cluster: Cluster) -> None:
    body = (
        f'{{"model": "{MODEL}", "temperature": 0,'
        ' "messages": [{"role": "user", "content": "What is the capital of France?"}]}'
    )
    url = f"{cluster.url}/v1/chat/completions"
    command = ["curl", "-sf", url, "-H", "Content-Type: application/json", "-d", body]
    done = subprocess.run(command, capture_output=True, text=True, timeout=CLIENT_DEADLINE)
    assert "Paris" in done.stdout
