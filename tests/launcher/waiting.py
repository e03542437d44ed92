"""Waits as `server.standby` does, without its imports; told its rank, it says what it was told, and stays."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from server.standby.__main__ import take_place, wait
from server.standby.assignment import Word, said


def main() -> int:
    place = int(os.environ["MLX_RANK"])
    print(f"waiting {place} {os.getpid()}", flush=True)
    print(said(place, Word.WARM), flush=True)
    assignment = wait(0)
    rank = None if assignment is None else assignment.rank_at(place)
    if assignment is None or rank is None:
        return 0
    take_place(assignment, rank)
    ring = Path(os.environ["MLX_HOSTFILE"]).read_text()
    print(said(place, Word.TAKEN), flush=True)
    words = " ".join([*sys.argv[1:], *assignment.arguments])
    print(f"rank {os.environ['MLX_RANK']} at {place} in {ring} with {words}", flush=True)
    time.sleep(600)
    return 0


if __name__ == "__main__":
    sys.exit(main())
