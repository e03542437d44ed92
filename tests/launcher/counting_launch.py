"""launcher.mlx_launch, telling at its end how often it looked at its pipes."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from itertools import count

from launcher import mlx_launch

Descriptors = Sequence[int]


def main() -> int:
    looks = count()
    wait = mlx_launch.wait_readable

    def counted(
        reading: Descriptors, writing: Descriptors, exceptional: Descriptors, timeout: float
    ) -> tuple[list[int], list[int], list[int]]:
        next(looks)
        return wait(reading, writing, exceptional, timeout)

    mlx_launch.wait_readable = counted
    before = time.monotonic()
    status = mlx_launch.main()
    print(f"looks a second: {next(looks) / (time.monotonic() - before)}", flush=True)
    return status


if __name__ == "__main__":
    sys.exit(main())
