"""Print what every credential opens: every route of every port, and every method of the coordinator.

.venv/bin/python -m tests.server.access.table
"""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path

from tests.server.access import test_coordinator_access, test_credentials


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        print(test_credentials.table(Path(folder)))
    with tempfile.TemporaryDirectory() as folder:
        print()
        print(asyncio.run(test_coordinator_access.table(Path(folder) / "keys.json")))


if __name__ == "__main__":
    main()
