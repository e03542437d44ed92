"""Looks at other processes and machines: is rank 0 well, and which nodes can be reached.  Each look has a
deadline.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import httpx

from launcher.nodes import Member
from launcher.ssh import why_no_login
from launcher.watch import Report, read_report

HEALTH_TIMEOUT = 1.0  # seconds


class HealthProbe:
    """Asks rank 0 for its health document."""

    def __init__(self) -> None:
        # No proxy from the environment stands between the launcher and its ranks.
        self._client = httpx.AsyncClient(timeout=HEALTH_TIMEOUT, trust_env=False)

    async def ask(self, url: str) -> Report | None:
        """What rank 0 says; None if it does not answer, or with something else."""
        try:
            response = await self._client.get(url)
            return read_report(response.status_code, response.json())
        except (httpx.HTTPError, KeyError, TypeError, ValueError):
            return None

    async def close(self) -> None:
        await self._client.aclose()


async def unreachable(members: Sequence[Member]) -> dict[str, str]:
    """Why commands can't be run on a node, by name, for those on which they can't."""
    remote = [member for member in members if not member.is_local]
    problems = await asyncio.gather(*(asyncio.to_thread(why_no_login, m.ssh) for m in remote))
    return {member.name: why for member, why in zip(remote, problems, strict=True) if why}
