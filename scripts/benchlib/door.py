"""A process with the launcher's front door alone, before one rank 0.

python -m benchlib.door PORT UPSTREAM_PORT
"""

from __future__ import annotations

import asyncio
import sys

from config import load
from launcher.door import LeaderAddress
from launcher.frontdoor import FrontDoor
from server import descriptors

HOST = "127.0.0.1"


async def serve(port: int, upstream: int) -> None:
    """Serve until the process is killed."""
    descriptors.raise_limit()
    settings = [f"api_gateway.port={port}", "access.enabled=false"]
    door = FrontDoor(load(None, {}, settings).config)
    await door.start()
    door.leader_changed(LeaderAddress(HOST, upstream))
    print("ready", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1]), int(sys.argv[2])))
