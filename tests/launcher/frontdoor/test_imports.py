from __future__ import annotations

import subprocess
import sys


def test_the_front_door_needs_no_mlx() -> None:
    code = (
        "import sys, launcher.frontdoor\n"
        "bad = [m for m in sys.modules if m.split('.')[0] in ('mlx', 'mlx_lm', 'transformers')]\n"
        "assert not bad, bad"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
