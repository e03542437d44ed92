"""The certificates of a rank's own node, read once its name is known."""

from __future__ import annotations

import threading

from config.tls import TlsConfig
from pipeline.errors import StartFailed
from server.tls.contexts import ClusterTls, node_tls
from server.tls.errors import TlsError


class OwnTls:
    """Called with the node's name, by any thread.  All get the same answer."""

    def __init__(self, config: TlsConfig) -> None:
        self._config = config
        self._lock = threading.Lock()
        self._made: dict[str, ClusterTls | None] = {}

    def __call__(self, name: str) -> ClusterTls | None:
        """None where the cluster does without TLS.  Raises StartFailed for files that can't be used."""
        with self._lock:
            if name not in self._made:
                try:
                    self._made[name] = node_tls(self._config, name)
                except TlsError as error:
                    raise StartFailed(str(error)) from error
            return self._made[name]
