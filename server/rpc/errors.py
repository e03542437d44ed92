"""Every error of the control plane, in one tree, with the gRPC status that carries it.

CoordinatorError
├── BindError               the address can't be listened on; no such interface, no permission
│   └── PortInUse           another process listens there
├── InvalidMessage          INVALID_ARGUMENT      a field is missing or out of range
├── Refused                 FAILED_PRECONDITION   contradicts the cluster; the rank must exit
│   ├── NotRegistered       NOT_FOUND             a heartbeat from a rank that is not registered
│   └── NotAllowed          UNAUTHENTICATED, PERMISSION_DENIED: the credential is missing or not enough
├── Overloaded         RESOURCE_EXHAUSTED    come back later
└── CoordinatorLost         no answer until the deadline; this launch of the ring is over
"""

from __future__ import annotations

import errno


class CoordinatorError(Exception):
    """Base of all errors raised by this package."""


class BindError(CoordinatorError):
    """The address can't be listened on."""

    def __init__(self, host: str, port: int, reason: str) -> None:
        self.host, self.port = host, port
        super().__init__(reason)

    @classmethod
    def of(cls, host: str, port: int, cause: OSError) -> BindError:
        """The subclass and the sentence for what the operating system answered."""
        if cause.errno == errno.EADDRINUSE:
            return PortInUse(host, port, f"port {port} is already in use on {host}")
        return cls(host, port, f"can't listen on {host} port {port}: {cause.strerror or cause}")


class PortInUse(BindError):
    """Another process listens on the port."""


class InvalidMessage(CoordinatorError):
    """A field of a message is missing or out of range; the sentence begins with its name."""


class Refused(CoordinatorError):
    """A message that contradicts what the coordinator knows; repeating it does not help."""


class NotRegistered(Refused):
    """The rank has not registered with this coordinator."""


class NotAllowed(Refused):
    """The coordinator asks for a signature of the cluster, or for a key with a stronger role."""


class Overloaded(CoordinatorError):
    """As many watchers or calls as allowed are connected."""


class CoordinatorLost(CoordinatorError):
    """The coordinator did not answer before the deadline."""
