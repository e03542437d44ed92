"""The launcher outlives ranks that crash in MLX or run out of memory: its process must not hold MLX."""

from __future__ import annotations

import subprocess
import sys

# launcher.mlx_launch is a process of its own, which runs mlx.launch.
LOAD_ALL = """
import importlib, pkgutil, sys
import launcher
for module in pkgutil.walk_packages(launcher.__path__, "launcher."):
    if module.name != "launcher.mlx_launch":
        importlib.import_module(module.name)
assert "launcher.frontdoor.door" in sys.modules and "launcher.commands.ask" in sys.modules
bad = [m for m in sys.modules if m.split(".")[0] in ("mlx", "mlx_lm", "transformers")]
assert not bad, bad
engine = {m for m in sys.modules if m.split(".")[0] == "pipeline"}
assert engine <= {"pipeline", "pipeline.errors"}, engine
"""


def test_the_launcher_needs_no_mlx_and_no_engine() -> None:
    subprocess.run([sys.executable, "-c", LOAD_ALL], check=True, timeout=120)
