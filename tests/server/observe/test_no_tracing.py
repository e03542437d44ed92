"""What is not wanted is not even imported."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from config import ConfigError, load
from server.node.serve import StartupFailed
from server.process import RankProcess


def test_without_the_extra_the_setting_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "server.observe.tracing", None)
    settings = load(None, {}, ["observe.otlp_endpoint=http://127.0.0.1:4318"])
    process: Any = SimpleNamespace(settings=settings)
    with pytest.raises(StartupFailed, match=r"^observe.otlp_endpoint = .*: .* extra otel installs"):
        RankProcess._make_tracing(process)


@pytest.mark.parametrize("url", ["127.0.0.1:4318", "ftp://x"])
def test_the_endpoint_is_a_url(url: str) -> None:
    with pytest.raises(ConfigError, match=r"observe\.otlp_endpoint.*should begin with http"):
        load(None, {}, [f"observe.otlp_endpoint={url}"])


def test_without_an_endpoint_nothing_of_opentelemetry_is_imported() -> None:
    check = "import sys, server.process; print([m for m in sys.modules if 'opentelemetry' in m])"
    done = subprocess.run(
        [sys.executable, "-c", check], capture_output=True, text=True, timeout=120, check=True
    )
    assert done.stdout.strip() == "[]"
