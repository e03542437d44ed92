"""The one error of this package."""

from __future__ import annotations


class TlsError(Exception):
    """A certificate or key can't be used.  The message is one sentence that names the setting or the file."""
