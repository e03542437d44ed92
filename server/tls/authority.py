"""Making certificates: a CA of the cluster, and what it signs.  Bytes in and out, no files."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from server.tls.identity import SUFFIX, Identity, Kind, check_name

CA_DAYS = 3650
DAYS = 397  # what browsers take of a gateway's certificate
CLOCK_SKEW = timedelta(hours=1)  # by which the clock of another node may be late

_PURPOSES = {
    Kind.NODE: [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH],
    Kind.LAUNCHER: [ExtendedKeyUsageOID.CLIENT_AUTH],
    Kind.CLIENT: [ExtendedKeyUsageOID.CLIENT_AUTH],
    Kind.GATEWAY: [ExtendedKeyUsageOID.SERVER_AUTH],
}


@dataclass(frozen=True)
class Pair:
    """A certificate and its key, in PEM."""

    certificate: bytes
    key: bytes


def new_ca(cluster: str, now: datetime, days: int = CA_DAYS) -> Pair:
    """A self-signed CA that signs holders, and no other CAs."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = _name(f"{cluster} CA")
    identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    certificate = (
        _builder(name, name, key.public_key(), now, now + timedelta(days=days))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .add_extension(identifier, critical=False)
        .sign(key, hashes.SHA256())
    )
    return _pair(certificate, key)


def issue(
    ca: Pair, identity: Identity, addresses: Sequence[str], now: datetime, days: int = DAYS
) -> Pair:
    """A certificate for `identity`, which also names host names and IP addresses.

    It ends no later than the CA's.  Raises TlsError for a name that can't stand in it, ValueError for an
    address.
    """
    check_name(identity)
    signer = x509.load_pem_x509_certificate(ca.certificate)
    signer_key = serialization.load_pem_private_key(ca.key, None)
    assert isinstance(signer_key, ec.EllipticCurvePrivateKey), "made by new_ca"
    key = ec.generate_private_key(ec.SECP256R1())
    names = [x509.DNSName(identity.dns_name), *(general_name(text) for text in addresses)]
    authority = x509.AuthorityKeyIdentifier.from_issuer_public_key(signer_key.public_key())
    until = min(now + timedelta(days=days), signer.not_valid_after_utc)
    certificate = (
        _builder(_name(str(identity)), signer.subject, key.public_key(), now, until)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage(_PURPOSES[identity.kind]), critical=False)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(authority, critical=False)
        .sign(signer_key, hashes.SHA256())
    )
    return _pair(certificate, key)


def general_name(address: str) -> x509.GeneralName:
    """An IP address or a host name.  Raises ValueError for one that belongs to identities."""
    try:
        return x509.IPAddress(ipaddress.ip_address(address))
    except ValueError:
        if address.endswith(SUFFIX):
            raise ValueError(f"{address}: names below {SUFFIX} are for identities") from None
        return x509.DNSName(address)


def addresses_in(certificate: x509.Certificate) -> list[str]:
    """The host names and IP addresses that a certificate names, without its identity."""
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    hosts = [name for name in names.get_values_for_type(x509.DNSName) if not name.endswith(SUFFIX)]
    return [*hosts, *(str(ip) for ip in names.get_values_for_type(x509.IPAddress))]


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePublicKey,
    now: datetime,
    until: datetime,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - CLOCK_SKEW)
        .not_valid_after(until)
    )


def _name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common[:64])])  # X.509's limit


def _usage(signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _pair(certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> Pair:
    return Pair(
        certificate.public_bytes(serialization.Encoding.PEM),
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        ),
    )
