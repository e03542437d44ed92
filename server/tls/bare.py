"""The TLS contexts between members of a cluster, with nothing but the standard library."""

from __future__ import annotations

import ssl
from os import PathLike

File = str | PathLike[str]


def member_context(protocol: int, certificate: File, key: File, ca: File) -> ssl.SSLContext:
    """A context that shows a certificate, takes only those of the CA, and speaks TLS 1.3.

    protocol: ssl.PROTOCOL_TLS_SERVER, or ssl.PROTOCOL_TLS_CLIENT, which also checks the name.
    Raises OSError if the files can't be used.
    """
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_mode = ssl.CERT_REQUIRED
    if protocol == ssl.PROTOCOL_TLS_SERVER:
        context.num_tickets = 0  # no session is resumed here: the connections stay
    context.load_cert_chain(certificate, key)
    context.load_verify_locations(ca)
    return context
