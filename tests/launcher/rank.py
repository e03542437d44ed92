"""A rank for the launcher's tests: says that it is up, then behaves as its first argument says.

Under mpirun it joins MPI, which changes how it ends.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from types import FrameType

from server import exit_status


def stop(number: int, frame: FrameType | None) -> None:
    print("stopping in order", flush=True)
    sys.exit(0)


def main() -> None:
    behaviour = sys.argv[1]
    rank = int(os.environ.get("MLX_RANK", "0"))
    if "OMPI_COMM_WORLD_RANK" in os.environ:
        import mlx.core as mx

        rank = mx.distributed.init(strict=True, backend="mpi").rank()
    # Before the word that it is up: tests signal as soon as they have read that.
    if behaviour == "graceful":
        signal.signal(signal.SIGTERM, stop)
    if behaviour == "stubborn":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    print(f"up {rank} {os.getpid()}", flush=True)
    if behaviour == "finish":
        return
    if behaviour == "settings":
        settings = {key: value for key, value in os.environ.items() if key.startswith("MLXC_")}
        print(f"rank {rank} has {sorted(settings.items())}", flush=True)
        return
    if behaviour == "pause":
        time.sleep(2)
        return
    if behaviour == "fail" and rank == 1:
        print("fatal: layer 7 is missing", file=sys.stderr, flush=True)
        sys.exit(exit_status.ENGINE)
    if behaviour == "crash" and rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(120)


if __name__ == "__main__":
    main()
