"""Who did what, when, with how many tokens and what result: one line of JSON for each request.

It holds names and numbers, never a prompt, an output, a key or a token: not even the path as it was sent, but
the route that it matched.
"""

from __future__ import annotations

import logging
import logging.handlers
import os
from datetime import datetime, timezone
from pathlib import Path

import msgspec

from config.access import AuditConfig
from server.access.errors import AccessError


class AuditEntry(msgspec.Struct, frozen=True, kw_only=True):
    """One request.  `result`: ok, refused, failed or cancelled."""

    time: str  # ISO 8601, UTC
    request_id: str = ""  # gRPC has none
    key: str
    name: str
    role: str
    address: str = ""
    method: str
    route: str
    status: int  # 0: none was sent
    result: str
    code: str | None = None  # why it was refused
    prompt_tokens: int = 0
    completion_tokens: int = 0
    seconds: float = 0.0


def moment() -> str:
    """Now, as entries have it."""
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds")


class AuditLog:
    """Appends to a file that only its owner may read, and puts it aside when it is large."""

    def __init__(self, config: AuditConfig) -> None:
        """Raises AccessError if the file can't be written."""
        assert config.file is not None
        path = Path(config.file)
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._handler = _PrivateHandler(
                path, maxBytes=int(config.max_bytes), backupCount=config.keep, encoding="utf-8"
            )
        except OSError as error:
            raise AccessError(
                f"access.audit.file = {path}: can't be written: {error.strerror}."
            ) from error

    def write(self, entry: AuditEntry) -> None:
        """A failure to write is reported on stderr once per entry, and disturbs no request."""
        line = msgspec.json.encode(entry).decode()
        self._handler.handle(logging.LogRecord("audit", logging.INFO, "", 0, line, None, None))

    def close(self) -> None:
        self._handler.close()


class _PrivateHandler(logging.handlers.RotatingFileHandler):
    def _open(self):  # type: ignore[no-untyped-def]  # as the base class has it
        handle = os.open(self.baseFilename, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        return os.fdopen(handle, self.mode, encoding=self.encoding)


def open_audit(config: AuditConfig, suffix: str = "") -> AuditLog | None:
    """None if no file is configured; `suffix`: of its name, since each process has a file of its own."""
    if config.file is None:
        return None
    return AuditLog(config.model_copy(update={"file": config.file + suffix}))
