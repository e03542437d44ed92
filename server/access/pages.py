"""Pages in browsers, on a port that asks for no key.

A port on a loopback address can be reached by whatever page the user of the machine has open.  Pages of other
sites can send requests, though not read the answers; and a site whose name is made to lead to 127.0.0.1 could
read them too.  Programs that are no browsers send none of the headers that are looked at here.
"""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import urlsplit

from starlette.datastructures import Headers

from server.access.addresses import parse_address
from server.access.errors import OriginRefused

_READING = ("GET", "HEAD", "OPTIONS")

# What is looked at here.  A front door that has done so does not pass them on: to rank 0, which has another
# address, its pages would be those of another site.
LOOKED_AT = frozenset((b"origin", b"sec-fetch-site"))


@dataclass(frozen=True)
class Pages:
    """Which pages may ask: those of this server itself, and of `origins` (api_gateway.cors_origins).

    names: whether this server may be called by a name; where only this machine is served it has none.
    """

    origins: frozenset[str] = frozenset()
    names: bool = False

    def check(self, method: str, headers: Headers) -> None:
        """Raises OriginRefused."""
        origin, host = headers.get("origin"), headers.get("host", "")
        if origin is None and "sec-fetch-site" not in headers:
            return  # no browser
        if "*" in self.origins or origin in self.origins:
            return
        # Browsers name the page with everything that is more than reading.
        own = method in _READING if origin is None else urlsplit(origin).netloc == host
        if not (own and (self.names or _is_no_name(host))):
            raise OriginRefused(
                "Pages of other sites are not served here; api_gateway.cors_origins names those that are."
            )


def _is_no_name(host: str) -> bool:
    bare = host.rpartition(":")[0] if host.count(":") == 1 else host
    return bare.lower() == "localhost" or parse_address(host) is not None
