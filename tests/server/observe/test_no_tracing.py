"""What is not wanted is not even imported."""

from __future__ import annotations

import subprocess
import sys


def test_without_an_endpoint_nothing_of_opentelemetry_is_imported() -> None:
    check = "import sys, server.process; print([m for m in sys.modules if 'opentelemetry' in m])"
    done = subprocess.run(
        [sys.executable, "-c", check], capture_output=True, text=True, timeout=120, check=True
    )
    assert done.stdout.strip() == "[]"
