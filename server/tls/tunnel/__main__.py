"""python -m server.tls.tunnel CONTROL: the process beside a rank; CONTROL is the descriptor of its socket."""

from __future__ import annotations

import os
import signal
import socket
import ssl
import sys
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack

from server.tls.bare import member_context
from server.tls.tunnel.meet import Failed, Reception, Unusable, call
from server.tls.tunnel.messages import Lines, Plan, read_plan, write_word
from server.tls.tunnel.pump import Pump

LOCAL = "127.0.0.1"
LOCAL_RETRY_SECONDS = 0.02


def main() -> None:
    """Until the rank ends."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # it goes with the rank, which is told the same
    control = socket.socket(fileno=int(sys.argv[1]))
    lines = Lines(control)
    plan = read_plan(lines.next(None))
    threading.Thread(target=_serve, args=(control, plan), daemon=True).start()
    control.settimeout(None)
    while lines.next(None):
        pass
    os._exit(0)  # whatever the threads wait for


def _serve(control: socket.socket, plan: Plan) -> None:
    """Meet, tell the rank, carry."""
    try:
        connections = _meet(plan)
    except Failed as error:
        write_word(control, error.word, str(error))
        return
    write_word(control, "joined")
    for peer, plain, secure in connections:
        _carry_in_background(control, peer, plain, secure)


def _meet(plan: Plan) -> list[tuple[str, socket.socket, ssl.SSLSocket]]:
    """All connections to both neighbours.  Raises Failed."""
    deadline = time.monotonic() + plan.timeout
    with ExitStack() as local, ThreadPoolExecutor(len(plan.listen) + len(plan.call)) as pool:
        try:
            server, client = (
                member_context(protocol, plan.certificate, plan.key, plan.ca)
                for protocol in (ssl.PROTOCOL_TLS_SERVER, ssl.PROTOCOL_TLS_CLIENT)
            )
            places = [Reception(address, plan.before, server) for address in plan.listen]
        except OSError as error:
            _let_mlx_join(plan, local, deadline)
            reason = error.strerror or error
            raise Unusable(f"{' and '.join(plan.listen)}: {reason}") from error
        called: list[Future[ssl.SSLSocket]] = [
            pool.submit(call, address, plan.after, client, deadline) for address in plan.call
        ]
        waiting = [pool.submit(place.wait, deadline) for place in places]
        _let_mlx_join(plan, local, deadline)
        inbound = zip(plan.inbound, waiting, strict=True)
        outbound = zip(plan.outbound, called, strict=True)
        return [
            *((plan.after, socket.socket(fileno=fd), one.result()) for fd, one in outbound),
            *((plan.before, socket.socket(fileno=fd), one.result()) for fd, one in inbound),
        ]


def _let_mlx_join(plan: Plan, keep: ExitStack, deadline: float) -> None:
    """Be the neighbour that MLX waits for, on each of its local ports."""
    for port in plan.local:
        while True:
            try:
                keep.enter_context(socket.create_connection((LOCAL, port)))
                break
            except OSError as error:
                if time.monotonic() > deadline:
                    raise Failed(f"MLX does not listen on {LOCAL}:{port}: {error}") from error
            time.sleep(LOCAL_RETRY_SECONDS)


def _carry_in_background(
    control: socket.socket, peer: str, plain: socket.socket, secure: ssl.SSLSocket
) -> None:
    def carry() -> None:
        ended = Pump(plain, secure).run()
        plain.close()
        secure.close()
        if ended == "peer":
            write_word(control, "lost", f"{peer} closed the TLS connection of the hidden states")

    threading.Thread(target=carry, daemon=True).start()


if __name__ == "__main__":
    main()
