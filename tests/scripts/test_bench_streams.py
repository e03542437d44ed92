"""The benchmark of streams, small: real sockets, the real HTTP side, an engine that only keeps time."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_it_measures_idle_and_active_streams(tmp_path: Path) -> None:
    results = tmp_path / "results.json"
    command = [sys.executable, "scripts/bench_streams.py", "--idle", "60", "--active", "3"]
    command += ["--tokens", "5", "--rate", "50", "--json", str(results)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    rows = {(row["what"], row["streams"]): row for row in json.loads(results.read_text())["rows"]}
    assert rows["idle", 60]["kib"] >= 0
    paced, unpaced = rows["active, 50/s each", 3], rows["active, unpaced", 3]
    assert 0 <= paced["late50"] <= paced["late99"]
    assert paced["rate"] < 3 * 50 * 1.5  # five tokens take four pauses
    assert unpaced["cpu"] >= 0
    assert "KiB per stream" in done.stdout
