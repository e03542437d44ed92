"""Whether certificates and keys can be used, told at the start by one sentence that names setting and file."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes

from server.access.errors import AccessError
from server.access.private_file import read_private
from server.tls.errors import TlsError
from server.tls.identity import Identity, identity_in

SOON = timedelta(days=30)


@dataclass(frozen=True)
class Files:
    """A certificate and its key, and the settings by which they are found."""

    certificate: Path
    key: Path
    setting: str  # the section: tls.gateway or tls.cluster

    def load(self) -> x509.Certificate:
        """The certificate, if it can be used with its key now.  Raises TlsError."""
        certificate = read_certificate(self.certificate, f"{self.setting}.certificate")
        key = self._key()
        if key.public_key() != certificate.public_key():
            raise TlsError(
                f"{self.setting}.key = {self.key}: is not the key of {self.certificate}."
            )
        return certificate

    def _key(self) -> PrivateKeyTypes:
        place = f"{self.setting}.key = {self.key}"
        try:
            key = serialization.load_pem_private_key(read_private(self.key), None)
        except AccessError as error:
            raise TlsError(f"{self.setting}.key = {error}") from error
        except TypeError as error:
            raise TlsError(f"{place}: has a password, which nobody could enter.") from error
        except ValueError as error:
            raise TlsError(f"{place}: is not a key in PEM.") from error
        return key


def read_certificate(path: Path, setting: str) -> x509.Certificate:
    """The first certificate of a PEM file, if it is valid now.  Raises TlsError."""
    place = f"{setting} = {path}"
    try:
        certificate = x509.load_pem_x509_certificate(path.read_bytes())
    except OSError as error:
        raise TlsError(f"{place}: can't be read: {error.strerror}.") from error
    except ValueError as error:
        raise TlsError(f"{place}: is not a certificate in PEM.") from error
    now = datetime.now(timezone.utc)
    if now > certificate.not_valid_after_utc:
        raise TlsError(
            f"{place}: expired on {day(certificate.not_valid_after_utc)}; "
            "`scripts/certs renew` makes new ones."
        )
    if now < certificate.not_valid_before_utc:
        raise TlsError(
            f"{place}: is valid only from {certificate.not_valid_before_utc} on; look at the clock."
        )
    return certificate


def check_signed(certificate: x509.Certificate, files: Files, ca: Path) -> None:
    """Raises TlsError unless the CA has signed it."""
    signer = read_certificate(ca, f"{files.setting}.ca")
    try:
        certificate.verify_directly_issued_by(signer)
    except (ValueError, TypeError, InvalidSignature) as error:
        raise TlsError(
            f"{files.setting}.certificate = {files.certificate}: was not signed by {ca}."
        ) from error


def check_holder(certificate: x509.Certificate, files: Files, expected: Identity) -> None:
    """Raises TlsError if it is somebody else's."""
    holder = holder_of(certificate)
    if holder != expected:
        raise TlsError(
            f"{files.setting}.certificate = {files.certificate}: is of {holder or 'nobody of the cluster'}, "
            f"not of {expected}."
        )


def holder_of(certificate: x509.Certificate) -> Identity | None:
    """Whom a certificate of the cluster names."""
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return None
    return identity_in(names.get_values_for_type(x509.DNSName))


def day(moment: datetime) -> str:
    """As people write it."""
    return moment.date().isoformat()


def load_chain(context: ssl.SSLContext, files: Files) -> None:
    """Serve the certificate by `context`, from the next connection on.  Raises TlsError."""
    try:
        context.load_cert_chain(files.certificate, files.key)
    except (OSError, ssl.SSLError) as error:
        raise TlsError(
            f"{files.setting}.certificate = {files.certificate}: can't be used: {error}."
        ) from error
