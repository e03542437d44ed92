"""Who asks, and what that role may do."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Annotated

import msgspec

Positive = Annotated[int, msgspec.Meta(ge=1, le=2**31 - 1)]


class KeyLimits(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What one key may use; None: what the role may.  Names as in access.limits."""

    requests_per_minute: Positive | None = None
    tokens_per_minute: Positive | None = None
    concurrent_requests: Positive | None = None
    max_tokens: Positive | None = None


NO_LIMITS = KeyLimits()


class Role(enum.IntEnum):
    """Each one may do what the ones before it may."""

    VIEWER = 1  # health, models, metrics, dashboard
    USER = 2  # inference
    OPERATOR = 3  # drain, lead, switch the model, dynamic settings
    ADMIN = 4  # keys

    @property
    def label(self) -> str:
        """As in configuration and files."""
        return self.name.lower()

    @classmethod
    def of(cls, label: str) -> Role:
        """Raises ValueError for a label that is no role."""
        for role in cls:
            if role.label == label:
                return role
        raise ValueError(f"{label} is not a role; roles are {', '.join(r.label for r in cls)}")


@dataclass(frozen=True)
class Principal:
    """A key, a token's subject, or anybody at all where none is asked for."""

    id: str  # of the key, or jwt:<subject>; also the tenant of fair queueing
    name: str
    role: Role
    limits: KeyLimits = NO_LIMITS  # of the key itself; they win over those of the role


ANYBODY = Principal("", "anybody", Role.ADMIN)  # access is not restricted
NOBODY = Principal("", "nobody", Role.VIEWER)  # asked for what is open to all
