"""Attempts at rank 0: one HTTP request each, answered by records."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass

import httpx
from starlette.types import Scope

from launcher.door import LeaderAddress
from launcher.frontdoor.exchange import Exchange, Interrupted
from server.access.limits import RATE_LIMIT_HEADERS
from server.access.pages import LOOKED_AT
from server.api.errors import InvalidRequest
from server.api.request_id import HEADER as REQUEST_ID
from server.node.forward import ForwardLimits, UpstreamTls, new_client
from server.node.relay import end_to_end
from server.replay.records import HEADER, KEPT_HEADER, MEDIA_TYPE, Record, RecordReader, Start
from server.tls.contexts import ClusterTls
from server.tls.identity import node

# Made anew for every attempt, or looked at already.
_REPLACED = LOOKED_AT | {
    b"content-length",
    b"accept-encoding",
    REQUEST_ID.encode(),
    HEADER.encode(),
    KEPT_HEADER.encode(),
}


STATUS_SECONDS = 2.0  # for a rank 0 that is asked how it is


@dataclass(frozen=True)
class Asked:
    """A client's request, whole, and the record of what it goes on from."""

    scope: Scope
    body: bytes
    kept: bytes = b""


class Answer:
    """What rank 0 says to one attempt: records, or at once an answer that no journal is kept of."""

    def __init__(self, response: httpx.Response) -> None:
        self._response = response
        self.journaled = response.headers.get("content-type", "").startswith(MEDIA_TYPE)

    @property
    def limits(self) -> list[tuple[bytes, bytes]]:
        """What rank 0 says of the limits of the key."""
        headers = self._response.headers
        return [(n.encode(), headers[n].encode()) for n in RATE_LIMIT_HEADERS if n in headers]

    @property
    def plain(self) -> Start:
        """The head of an answer that is none of records."""
        return Start(self._response.status_code, end_to_end(self._response.headers.raw))

    async def body(self) -> bytes:
        """The body of such an answer, which is an error: short."""
        return await self._response.aread()

    async def batches(self) -> AsyncIterator[list[Record]]:
        """Records as they arrive, to the end of the HTTP response.

        Raises JournalError and httpx.TransportError.
        """
        reader = RecordReader()
        async with aclosing(self._response.aiter_raw()) as chunks:  # type: ignore[type-var]
            async for chunk in chunks:
                yield list(reader.feed(chunk))


class Upstream:
    """Connections to the inference ports of those who lead."""

    def __init__(self, limits: ForwardLimits, tls: ClusterTls | None) -> None:
        self._tls = tls
        # Without a bound of its own: a request that waited here for others to end would look like a rank 0 that
        # does not answer.  Rank 0 says itself how many requests and connections are too many.
        self._client = new_client(limits, None if tls is None else tls.client, bounded=False)

    def tls_of(self, name: str) -> UpstreamTls | None:
        """How the node is called where the cluster has TLS."""
        return None if self._tls is None else UpstreamTls(self._tls.client, node(name).dns_name)

    async def close(self) -> None:
        await self._client.aclose()

    @asynccontextmanager
    async def attempt(
        self, leader: LeaderAddress, asked: Asked, exchange: Exchange
    ) -> AsyncIterator[Answer]:
        """Ask rank 0; leaving the context gives the request up there.  Raises Interrupted and InvalidRequest,
        and inside it httpx.TransportError.
        """
        try:
            request = self._request(leader, asked, exchange)
        except httpx.InvalidURL as error:
            raise InvalidRequest("The request target is not a path.") from error
        try:
            response = await self._client.send(request, stream=True)
        except httpx.TransportError as error:
            # Without a response the request may not even have arrived, and it is not what killed a rank.
            reason = f"rank 0 at {leader.host}:{leader.port} does not answer"
            raise Interrupted(f"{reason} ({type(error).__name__})", fault=False) from error
        try:
            yield Answer(response)
        finally:
            await response.aclose()

    async def get(
        self, leader: LeaderAddress, path: str, headers: dict[str, str]
    ) -> httpx.Response | None:
        """A short answer of rank 0; None if it gives none in time."""
        try:
            return await self._client.get(
                self._url(leader, path.encode()),
                headers=headers,
                timeout=STATUS_SECONDS,
                extensions=self._extensions(leader),
            )
        except httpx.TransportError:
            return None

    @asynccontextmanager
    async def watch(
        self, leader: LeaderAddress, scope: Scope, silence_s: float
    ) -> AsyncIterator[httpx.Response]:
        """Pass a client's GET on to rank 0; its answer is still to come, and is never longer silent than that.

        Raises httpx.TransportError, inside the context too.
        """
        timeout = {**self._client.timeout.as_dict(), "read": silence_s}
        request = httpx.Request(
            "GET",
            self._url(leader, scope["raw_path"]),
            headers=self._headers(scope),
            extensions={**self._extensions(leader), "timeout": timeout},
        )
        response = await self._client.send(request, stream=True)
        try:
            yield response
        finally:
            await response.aclose()

    def _url(self, leader: LeaderAddress, target: bytes) -> httpx.URL:
        scheme = "http" if self._tls is None else "https"
        return httpx.URL(scheme=scheme, host=leader.host, port=leader.port, raw_path=target)

    def _extensions(self, leader: LeaderAddress) -> dict[str, str]:
        tls = self.tls_of(leader.node)
        return {} if tls is None else {"sni_hostname": tls.name}

    def _headers(self, scope: Scope) -> list[tuple[bytes, bytes]]:
        """The client's, with its address, which rank 0 believes of its neighbours."""
        headers = [pair for pair in end_to_end(scope["headers"]) if pair[0] not in _REPLACED]
        headers.append((REQUEST_ID.encode(), scope["state"]["request_id"].encode()))
        if scope.get("client"):
            headers.append((b"x-forwarded-for", scope["client"][0].encode()))
        return headers

    def _request(self, leader: LeaderAddress, asked: Asked, exchange: Exchange) -> httpx.Request:
        scope, events = asked.scope, bytes(exchange.events)
        target: bytes = scope["raw_path"]
        if scope["query_string"]:
            target += b"?" + scope["query_string"]
        headers = self._headers(scope)
        headers.append((HEADER.encode(), exchange.context.header(len(events)).encode()))
        if asked.kept:
            headers.append((KEPT_HEADER.encode(), str(len(asked.kept)).encode()))
        return httpx.Request(
            "POST",
            self._url(leader, target),
            headers=headers,
            content=asked.kept + events + asked.body,
            extensions=self._extensions(leader),
        )
