"""TLS between clients and the gateway, with files that may be replaced while it runs."""

from __future__ import annotations

import asyncio
import ssl
from datetime import datetime
from typing import NoReturn

import structlog

from config.tls import TlsConfig
from server.access.errors import AccessError
from server.access.private_file import Version, version_of
from server.tls.check import Files, load_chain
from server.tls.errors import TlsError
from server.tls.expiry import note_expiry

log = structlog.get_logger(__name__)

LOOK_SECONDS = 5.0  # between two looks at the files
WARN_SECONDS = 24 * 3600.0  # between two warnings of a certificate that expires soon


class GatewayTls:
    """A context for the gateway's port.  New connections get what was last read whole and found valid."""

    def __init__(self, files: Files) -> None:
        """Raises TlsError if the files can't be used."""
        self._files = files
        self._seen = self._versions()
        self.context = _new_context()
        self._load()

    def _load(self) -> None:
        certificate = self._files.load()
        # A chain that fails halfway must not change what is served.
        load_chain(_new_context(), self._files)
        load_chain(self.context, self._files)
        self._certificate = certificate
        self._note()

    def _note(self) -> None:
        note_expiry(self._certificate, self._files.certificate, self._files.setting)

    @property
    def expires(self) -> datetime:
        """When what is served ends."""
        return self._certificate.not_valid_after_utc

    def reload(self) -> bool:
        """Take over files that have changed; True if they have.  Files that can't be used are told."""
        versions = self._versions()
        if versions == self._seen:
            return False
        self._seen = versions
        try:
            self._load()
        except TlsError as error:
            log.warning("the changed certificate is not used", reason=str(error))
            return False
        log.info("the gateway's certificate was replaced", expires=self.expires.isoformat())
        return True

    async def watch(self, seconds: float = LOOK_SECONDS) -> NoReturn:
        """Look at the files every few seconds, until cancelled."""
        warned = 0.0
        while True:
            await asyncio.sleep(seconds)
            warned += seconds
            if self.reload() or warned < WARN_SECONDS:
                continue
            warned = 0.0
            self._note()

    def _versions(self) -> tuple[Version | None, ...]:
        try:
            return version_of(self._files.certificate), version_of(self._files.key)
        except AccessError:
            return None, None  # what is wrong with them is told when they are read


def gateway_tls(config: TlsConfig) -> GatewayTls | None:
    """None where the gateway is served without TLS.  Raises TlsError."""
    paths = config.gateway_paths()
    return None if paths is None else GatewayTls(Files(*paths, "tls.gateway"))


def _new_context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    return context
