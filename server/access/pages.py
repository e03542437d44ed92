"""Pages in browsers, on a port that asks for no key.

A port on a loopback address can be reached by whatever page the user of the machine has open.  Pages of other
sites can send requests, though not read the answers: they are known by Origin and Sec-Fetch-Site, which no
program but a browser sends.  A site whose name is made to lead to 127.0.0.1 could read them too, and its pages
are this server's own to the browser, which then may leave out both: they are known by the name in Host alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import urlsplit

from starlette.datastructures import Headers

from server.access.addresses import parse_address
from server.access.errors import HostRefused, OriginRefused

LOCALHOST = "localhost"
_READING = ("GET", "HEAD", "OPTIONS")

# What is looked at here.  A front door that has done so does not pass them on: to rank 0, which has another
# address, its pages would be those of another site.
LOOKED_AT = frozenset((b"host", b"origin", b"sec-fetch-site"))


@dataclass(frozen=True)
class Pages:
    """Which pages may ask: those of this server itself, and of `origins` (api_gateway.cors_origins).

    names: by which this server may be called, besides addresses, to which no name can be made to lead, and
    localhost; None: any, as where more than this machine is served.
    """

    origins: frozenset[str] = frozenset()
    names: frozenset[str] | None = frozenset()

    def check(self, method: str, headers: Headers) -> None:
        """Raises HostRefused and OriginRefused."""
        for host in headers.getlist("host"):
            self._check_name(host)
        origin, host = headers.get("origin"), headers.get("host", "")
        if origin is None and "sec-fetch-site" not in headers:
            return  # no browser
        if "*" in self.origins or origin in self.origins:
            return
        # Browsers name the page with everything that is more than reading.
        own = method in _READING if origin is None else urlsplit(origin).netloc == host
        if not own:
            raise OriginRefused(
                "Pages of other sites are not served here; api_gateway.cors_origins names those that are."
            )

    def _check_name(self, host: str) -> None:
        if self.names is None or parse_address(host) is not None:
            return
        name, _, port = host.partition(":")
        known = name.lower().removesuffix(".") in self.names | {LOCALHOST}
        if not known or (port and not port.isdigit()):
            raise HostRefused(
                "As long as no key is asked for, this server is called by its address, as localhost, or by a "
                "name that api_gateway.host_names lists."
            )
