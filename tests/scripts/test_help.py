"""Benchmarks and the like explain themselves, which also shows that all that they import is there."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"
BENCHMARKS = sorted(path.stem for path in SCRIPTS.glob("bench_*.py"))


@pytest.mark.parametrize("name", [*BENCHMARKS, "chaos", "simulate", "timeline", "trace_prefill"])
def test_it_says_what_it_does_and_how_it_is_called(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module = importlib.import_module(name)
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    with pytest.raises(SystemExit) as ended:
        module.main()
    assert not ended.value.code
    shown = capsys.readouterr().out
    assert shown.startswith(f"usage: {name}")
    assert (module.__doc__ or "").partition("\n")[0] in shown
