"""The folder of certificates: what scripts/certs does.  Nothing is replaced unless that is asked."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from cryptography import x509

from config.tls import CA, GATEWAY, LAUNCHER, certificate_path, key_path
from server.access.errors import AccessError
from server.access.private_file import read_private, write_private
from server.tls.authority import DAYS, Pair, addresses_in, issue, new_ca
from server.tls.check import holder_of
from server.tls.errors import TlsError
from server.tls.identity import Identity, Kind


@dataclass(frozen=True)
class Entry:
    """One certificate of the folder."""

    path: Path
    certificate: x509.Certificate
    holder: Identity | None  # None: the CA's
    has_key: bool

    @property
    def expires(self) -> datetime:
        """The end of its validity."""
        return self.certificate.not_valid_after_utc

    @property
    def addresses(self) -> list[str]:
        """The host names and IP addresses that it names."""
        return [] if self.holder is None else addresses_in(self.certificate)


class Folder:
    """`now`: at which certificates are made."""

    def __init__(self, path: Path, now: datetime) -> None:
        self.path, self._now = path, now

    def init(self, cluster: str) -> Path:
        """Make the CA."""
        return self._write(CA, new_ca(cluster, self._now), replace=False)

    def add(self, identity: Identity, addresses: Sequence[str] = (), days: int = DAYS) -> Path:
        """Make a certificate and its key.  Raises TlsError if there is one of this name."""
        if identity.kind not in (Kind.GATEWAY, Kind.LAUNCHER) and identity.name in _RESERVED:
            raise TlsError(f"{identity.name} is a name of a file in {self.path}, and of no node.")
        return self._issue(identity, addresses, days, replace=False)

    def renew(self, entry: Entry, days: int = DAYS) -> Path:
        """Replace a certificate and its key by new ones that name the same."""
        assert entry.holder is not None, "the CA is not renewed"
        return self._issue(entry.holder, entry.addresses, days, replace=True)

    def entries(self) -> list[Entry]:
        """All certificates, the CA's first.  Raises TlsError for a file that is none."""
        found = [self._entry(path) for path in sorted(self.path.glob("*.pem"))]
        return sorted(found, key=lambda entry: entry.holder is not None)

    def entry(self, name: str) -> Entry:
        """The certificate of that name.  Raises TlsError if there is none."""
        path = certificate_path(self.path, name)
        if not path.exists():
            raise TlsError(
                f"{path}: there is no such file; `scripts/certs show` lists what there is."
            )
        return self._entry(path)

    def bundle(self, name: str) -> bytes:
        """A tar archive of what one machine needs: the CA's certificate, and its own with the key."""
        entry = self.entry(name)
        if entry.holder is None:
            raise TlsError("The CA's key stays where it is: whoever has it is the cluster.")
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as archive:
            for path in (certificate_path(self.path, CA), entry.path, key_path(self.path, name)):
                _add(archive, path.name, _read(path))
        return buffer.getvalue()

    def write_bundle(self, name: str, target: Path) -> None:
        """`bundle` in a file that only its owner reads.  Raises TlsError if there is such a file."""
        if target.exists():
            raise TlsError(f"{target}: is there already.")
        _write_private(target, self.bundle(name))

    def _issue(
        self, identity: Identity, addresses: Sequence[str], days: int, replace: bool
    ) -> Path:
        try:
            made = issue(self._ca(), identity, addresses, self._now, days)
        except ValueError as error:
            raise TlsError(f"{identity}: {error}.") from error
        return self._write(identity.name, made, replace)

    def _ca(self) -> Pair:
        certificate, key = certificate_path(self.path, CA), key_path(self.path, CA)
        if not key.exists():
            raise TlsError(f"{key}: there is no CA here; `scripts/certs init` makes one, once.")
        if self._entry(certificate).expires <= self._now:
            raise TlsError(f"{certificate}: has expired; begin anew in another folder.")
        return Pair(_read(certificate), _read(key))

    def _write(self, name: str, pair: Pair, replace: bool) -> Path:
        """The key first: a node that starts in between finds a pair that does not fit, and says so."""
        certificate, key = certificate_path(self.path, name), key_path(self.path, name)
        for path in (certificate, key):
            if path.exists() and not replace:
                raise TlsError(f"{path}: is there already; `scripts/certs renew` replaces it.")
        _write_private(key, pair.key)
        _write_private(certificate, pair.certificate)
        return certificate

    def _entry(self, path: Path) -> Entry:
        try:
            certificate = x509.load_pem_x509_certificate(_read(path))
        except ValueError as error:
            raise TlsError(f"{path}: is not a certificate in PEM.") from error
        return Entry(path, certificate, holder_of(certificate), path.with_suffix(".key").exists())


_RESERVED = frozenset({CA, GATEWAY, LAUNCHER})


def _add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size, member.mode = len(content), 0o600
    archive.addfile(member, io.BytesIO(content))


def _read(path: Path) -> bytes:
    try:
        return read_private(path) if path.suffix == ".key" else path.read_bytes()
    except OSError as error:
        raise TlsError(f"{path}: can't be read: {error.strerror}.") from error
    except AccessError as error:
        raise TlsError(str(error)) from error


def _write_private(path: Path, content: bytes) -> None:
    try:
        write_private(path, content)
    except AccessError as error:
        raise TlsError(str(error)) from error
