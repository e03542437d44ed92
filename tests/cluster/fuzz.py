"""Messages as they should not be: valid ones with some of their bytes changed, and junk."""

from __future__ import annotations

import random
import ssl
from collections.abc import Iterator, Sequence


def changed(valid: Sequence[bytes], count: int, seed: int) -> Iterator[bytes]:
    """`count` of them: bytes replaced, cut out, put in, repeated, cut off; now and then all are random."""
    choose = random.Random(seed)
    for _ in range(count):
        data = bytearray(choose.choice(valid))
        for _ in range(choose.randint(1, 5)):
            _change(data, choose)
        yield bytes(data) if choose.random() < 0.9 else choose.randbytes(choose.randint(1, 600))


def _change(data: bytearray, choose: random.Random) -> None:
    at = choose.randrange(len(data) + 1)
    length = choose.randint(1, 8)
    what = choose.randrange(5)
    if what == 0 and at < len(data):
        data[at] = choose.choice((0, 1, 0x7F, 0x80, 0xFF, choose.randrange(256)))
    elif what == 1:
        del data[at : at + length]
    elif what == 2:
        data[at:at] = choose.randbytes(length)
    elif what == 3:
        data += data[at:]
    elif at:
        del data[at:]


def hellos() -> list[bytes]:
    """First messages of TLS clients of several kinds."""
    found = []
    for newest in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
        for protocols in ([], ["http/1.1"], ["h2"]):
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.maximum_version = newest
            context.check_hostname = False
            if protocols:
                context.set_alpn_protocols(protocols)
            sent = ssl.MemoryBIO()
            client = context.wrap_bio(ssl.MemoryBIO(), sent, server_hostname="localhost")
            try:
                client.do_handshake()
            except ssl.SSLWantReadError:
                found.append(sent.read())
    return found
