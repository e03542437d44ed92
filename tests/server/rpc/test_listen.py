"""Ports as they are bound for every server."""

from __future__ import annotations

import asyncio
import socket

from server.rpc.listen import bind


def test_connections_send_at_once_what_is_written() -> None:
    async def accepted() -> int:
        loop = asyncio.get_running_loop()
        option: asyncio.Future[int] = loop.create_future()

        class Served(asyncio.Protocol):
            def connection_made(self, transport: asyncio.BaseTransport) -> None:
                sock = transport.get_extra_info("socket")
                option.set_result(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))

        listener = bind("127.0.0.1", 0)
        server = await loop.create_server(Served, sock=listener)
        _, writer = await asyncio.open_connection(*listener.getsockname())
        found = await asyncio.wait_for(option, 30)
        writer.close()
        server.close()
        return found

    assert asyncio.run(accepted()) != 0
