"""When certificates end: a metric for whoever watches, and a line in the log when it is soon."""

from __future__ import annotations

from datetime import datetime, timezone
from pathlib import Path

import structlog
from cryptography import x509
from prometheus_client import Gauge

from server.observe.registry import PREFIX, REGISTRY
from server.tls.check import SOON, day

log = structlog.get_logger(__name__)

EXPIRES = Gauge(
    f"{PREFIX}certificate_expires_timestamp_seconds",
    "When the certificate that is in use ends, in seconds since 1970.",
    ["use"],  # tls.gateway or tls.cluster
    registry=REGISTRY,
)


def note_expiry(certificate: x509.Certificate, path: Path, use: str) -> None:
    """To be called whenever a certificate is taken into use, and now and then."""
    ends = certificate.not_valid_after_utc
    EXPIRES.labels(use).set(ends.timestamp())
    left = ends - datetime.now(timezone.utc)
    if left < SOON:
        log.warning(
            "a certificate expires soon; scripts/certs renew makes a new one",
            certificate=str(path),
            expires=day(ends),
            days=left.days,
        )
