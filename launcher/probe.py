"""Looks at other processes and machines: is rank 0 well, and which nodes can be reached.  Each look has a
deadline.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Sequence

import httpx

from launcher.nodes import Member
from launcher.ssh import LOGIN_TIMEOUT, why_no_login
from launcher.watch import Report, read_report
from server.tls.contexts import ClusterTls
from server.tls.identity import node

HEALTH_TIMEOUT = 1.0  # seconds
LOST_PATIENCE = 3.0  # seconds
FRESH = 5.0  # seconds from the begin of a search for which it tells who can be reached
LOGIN_PATIENCE = 3.0 * LOGIN_TIMEOUT  # seconds


class HealthProbe:
    """Asks rank 0 for its health document."""

    def __init__(self, tls: ClusterTls | None = None) -> None:
        """`tls`: of the launcher, where the nodes speak nothing else."""
        self._tls = tls
        # No proxy from the environment stands between the launcher and its ranks.
        self._client = httpx.AsyncClient(
            timeout=HEALTH_TIMEOUT, trust_env=False, verify=True if tls is None else tls.client
        )

    async def ask(self, member: Member) -> Report | None:
        """What rank 0 on this node says; None if it does not answer, or with something else."""
        scheme = "http" if self._tls is None else "https"
        url = f"{scheme}://{member.health_at}/health"
        # Whoever answers must be that node, whatever address it has.
        names = {} if self._tls is None else {"sni_hostname": node(member.name).dns_name}
        try:
            response = await self._client.get(url, extensions=names)
            return read_report(response.status_code, response.json())
        except (httpx.HTTPError, KeyError, TypeError, ValueError):
            return None

    async def close(self) -> None:
        await self._client.aclose()


def own_address(towards: str) -> str | None:
    """The address of this machine that `towards` sees; None if there is no way to it.  Sends nothing."""
    family = socket.AF_INET6 if ":" in towards else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        try:
            sock.connect((towards, 9))  # any port: of a datagram socket this only picks a route
        except OSError:
            return None
        found: str = sock.getsockname()[0]
        return found


async def unreachable(
    members: Sequence[Member], patience: float = LOGIN_PATIENCE
) -> dict[str, str]:
    """Why commands can't be run on a node within `patience` seconds, by name, for those on which they can't."""
    remote = [member for member in members if not member.is_local]
    problems = await asyncio.gather(
        *(asyncio.to_thread(why_no_login, member.ssh, patience) for member in remote)
    )
    return {member.name: why for member, why in zip(remote, problems, strict=True) if why}


class LostNodes:
    """Tries the nodes of a broken epoch while it ends, or new ones before they are started.

    A launch that includes a node without power or cable takes a minute to fail.
    """

    def __init__(self) -> None:
        self._search: asyncio.Task[dict[str, str]] | None = None
        self._again: tuple[Member, ...] = ()  # where all are lost at once
        self._began = 0.0

    def search(self, members: Sequence[Member], patient: bool = True) -> bool:
        """Begin, unless that has been done; whether these members are the ones that are looked for now.

        `patient`: look longer where nobody at all is found; not for those that are wanted beside others.
        """
        if self._search is not None:
            return False
        self._again, self._began = tuple(members) if patient else (), time.monotonic()
        self._search = asyncio.create_task(unreachable(members, LOST_PATIENCE))
        return True

    def heed(self, members: Sequence[Member], is_suspicious: bool) -> None:
        """Of an epoch that serves: begin when somebody is silent, forget it if that was only a pause."""
        is_done = self._search is not None and self._search.done()
        if is_done and (not is_suspicious or time.monotonic() - self._began > FRESH):
            self._search = None
        if is_suspicious:
            self.search(members)

    async def found(self) -> dict[str, str]:
        """Why nodes can't be reached, by name; empty if nobody has searched."""
        if self._search is None:
            return {}
        search, self._search = self._search, None
        lost = await search
        if lost and len(lost) == len(self._again):
            # Hardly all of them at once: it is this machine that is slow, and there is nobody to go on with.
            lost = await unreachable(self._again)
        return lost
